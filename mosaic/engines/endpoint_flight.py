"""One call on its way to a server and back."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_line import Line, Refused
from mosaic.engines.endpoint_messages import Reply, read_reply, request_of
from mosaic.engines.orders import Job, clipped


class Flight:
    """A call under way, in a thread of its own."""

    def __init__(self, job: Job, endpoint: Endpoint, patience: EndpointPatience) -> None:
        self.job = job
        self._endpoint = endpoint
        self._line = Line(endpoint, patience)

    def start(self, land: Callable[["Flight", Reply | Exception], None]) -> None:
        """Ask, and say how it ended."""
        threading.Thread(target=self._fly, args=(land,), name=f"call {self.job.key}", daemon=True).start()

    def abort(self) -> None:
        """Break off; what the server has written is lost, since it sends all of it at the end."""
        self._line.abort()

    @property
    def num_retries(self) -> int:
        return self._line.num_retries

    @property
    def sent_ts(self) -> float | None:
        """When the try that counts was sent, on the machine's monotonic clock."""
        return self._line.sent_ts

    def _fly(self, land: Callable[["Flight", Reply | Exception], None]) -> None:
        try:
            path, body = request_of(self.job, self._endpoint)
            opened = self._endpoint.opens_thinking and path == "chat/completions"
            landed: Reply | Exception = read_reply(self._line.ask(path, body), thinking_opened=opened)
        except ValueError as error:
            landed = Refused(clipped(f"{self._endpoint.expert} at {self._endpoint.base_url}: {error}"))
        except Exception as error:
            landed = error
        land(self, landed)


class Landing(NamedTuple):
    """How a flight ended."""

    flight: Flight
    landed: Reply | Exception
    finished_ts: float
