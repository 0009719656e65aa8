"""Exports a run's counts to Prometheus, under vLLM's names where these exist; one series per model."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mosaic.core.spending import Cost
from mosaic.core.workload import ExpertName
from mosaic.report.run_status import RunStatus

LOOPBACK = "127.0.0.1"


COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens_total", "Prompt tokens of calls that have ended."),
    "output_tokens": ("vllm:generation_tokens_total", "Tokens that these calls have written."),
    "ended": ("vllm:request_success_total", "Calls that have ended with a text."),
    "preemptions": ("vllm:num_preemptions_total", "Preemptions of calls that have ended."),
    "failed": ("mosaic:failed_calls_total", "Calls that have failed."),
}
"""By key of ``RunStatus.counts``, counted since this process began: name and help."""


class RunMetrics:
    """Metrics of a batch, from its first second on.

    Parameters
    ----------
    num_questions
        Of the batch.
    """

    def __init__(self, num_questions: int) -> None:
        self._num_questions = num_questions
        self._count_done: Callable[[], int] = lambda: 0
        self._costs: Callable[[], Mapping[ExpertName, Cost]] = dict
        self._status = RunStatus("starting")
        self._before: defaultdict[str, Counter[ExpertName]] = defaultdict(Counter)
        """Counts of the earlier phases."""

    def follow(
        self,
        status: RunStatus,
        count_done: Callable[[], int],
        costs: Callable[[], Mapping[ExpertName, Cost]] = dict,
    ) -> None:
        """Go on with the status of the phase that begins.

        ``count_done`` gives the questions that are done, ``costs`` what servers were sent.
        """
        self._costs = costs
        for what, counts in self._status.counts.items():
            self._before[what].update(counts)
        self._status, self._count_done = status, count_done

    def _total(self, what: str) -> Counter[ExpertName]:
        """Count over all phases, zeros included; another thread updates the run's counter."""
        total = self._before[what].copy()
        total.update(self._status.counts[what].copy())
        return total

    def text(self) -> str:
        """Write the counts in Prometheus' text format."""
        status = self._status
        in_flight = status.calls_in_flight()
        waiting = status.open_calls()
        waiting.subtract(in_flight)
        left = "NaN" if status.left_s is None else f"{status.left_s:.1f}"
        phase = {f'{{phase="{_escaped(status.title)}"}}': 1}
        lines = _lines("mosaic:phase", "gauge", "What the batch does now, as a label; the value is 1.", phase)
        for name, about, value in (
            ("mosaic:questions", "Questions of the batch.", self._num_questions),
            ("mosaic:questions_done", "Questions whose calls have all ended.", self._count_done()),
            ("mosaic:calls", "Calls of this phase that are known.", status.num_calls),
            ("mosaic:calls_done", "Calls of this phase that have ended.", status.num_ended),
            ("mosaic:calls_in_flight", "Calls that engines have, of all models.", in_flight.total()),
            ("mosaic:seconds_left", "Seconds until the calls that are known have ended; NaN: not known.", left),
            ("mosaic:lost_workers", "Workers that are lost.", status.num_lost),
        ):
            lines += _lines(name, "gauge", about, {"": value})
        costs = self._costs()
        sent = {name: cost.spent.num_requests for name, cost in costs.items()}
        retried = {name: cost.spent.num_retries for name, cost in costs.items()}
        dollars = {name: cost.dollars for name, cost in costs.items() if cost.dollars is not None}
        billed = [
            ("counter", "mosaic:requests_total", "Requests that servers were sent, in earlier starts too.", sent),
            ("counter", "mosaic:retries_total", "Those of them that were retries.", retried),
            ("counter", "mosaic:cost_dollars_total", "What their answers cost.", dollars),
        ]
        for kind, name, about, counts in (
            *(billed if costs else ()),
            *(("counter", *described, self._total(what)) for what, described in COUNTERS.items()),
            ("gauge", "vllm:num_requests_running", "Calls that engines have.", in_flight),
            ("gauge", "vllm:num_requests_waiting", "Calls that were submitted and wait.", +waiting),
        ):
            by_model = {f'{{model_name="{_escaped(expert)}"}}': count for expert, count in sorted(counts.items())}
            lines += _lines(name, kind, about, by_model)
        return "\n".join(lines) + "\n"


def _lines(name: str, kind: str, about: str, samples: Mapping[str, object]) -> list[str]:
    """Write a metric: its values by their labels."""
    described = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    return described + [f"{name}{labels} {value}" for labels, value in samples.items()]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def serving(metrics: RunMetrics, port: int | None, host: str = LOOPBACK) -> Iterator[int | None]:
    """Serve the counts at /metrics during a run; yields the port; with 0 the system chooses it.

    Only this machine can read them, unless ``host`` is an address that other machines reach.

    Raises
    ------
    OSError
        If the port is in use, or the address is not one of this machine.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = metrics.text().encode() if self.path in ("/", "/metrics") else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Write nothing to stderr."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
