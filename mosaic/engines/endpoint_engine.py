"""Serves calls on an OpenAI-compatible server: an engine whose iterations run on the server.

Responses are not streamed. So the instant of the first token is not known, nor the tokens of an aborted call. A call is
scheduled when its request is sent; this includes its wait in the server's queue.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.errors import BackendError, FatalEngineError, OutageError
from mosaic.core.workload import CallKey
from mosaic.engines.endpoint import EndpointEngines
from mosaic.engines.endpoint_client import Client, Tries
from mosaic.engines.endpoint_faults import NO_SERVER, Fault, RequestError, what_to_do
from mosaic.engines.endpoint_messages import failed, request_of, response_of, written_before
from mosaic.engines.endpoint_models import NO_LIST, read_models
from mosaic.engines.engine import EngineSpec, Output, Request

STEP_S = 0.02
"""Duration of a step in which nothing ends."""
NUM_REFUSALS = 4
"""Refusals after which a server that has served no call is suspected; one call with all retries failed is enough.

A server that has served calls is suspected after so many calls in a row that failed by its errors, all retries
included. Calls that it refuses then fail alone.
"""


def prepare(settings: object) -> None:
    """Import once what each worker would otherwise import itself."""
    import aiohttp

    assert aiohttp.ClientSession is not None


def open_engine(spec: EngineSpec) -> "EndpointEngine":
    """Check that a server is up and serves the model of its calls.

    Raises
    ------
    OutageError
        If there is no answer, or the server demands a pause.
    FatalEngineError
        If key, URL or model are wrong. A server that does not list its models passes.
    """
    engine = EndpointEngine(spec.settings, spec.context_tokens, has_served=spec.has_served)
    try:
        engine.check_server()
    except BaseException:
        engine.close()
        raise
    return engine


def is_device_lost(error: Exception) -> bool:
    """Return whether the server serves no request at all."""
    return isinstance(error, OutageError)


class Call(Tries):
    """A request that has not ended."""

    def __init__(self, request: Request) -> None:
        super().__init__(max_requests=request.max_requests)
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.is_second = False
        """All its retries failed once, and the server served others."""


class Held(NamedTuple):
    """How a call failed; the server is the cause, unless it serves another call that was sent after this instant."""

    error: RequestError
    since_ts: float


class EndpointEngine:
    """The requests in progress at one server; their event loop runs inside `step`.

    A call may fail by the server's errors, all retries included. It is then held until the cause is known. If the
    server serves another call that was sent after it, the call is tried again, and then fails alone. A server that
    serves none does not get all calls of a run: once it is suspected, nothing more is sent. When every request in
    progress has failed at least once, an error reports it. Unended calls, held ones included, then go to other servers,
    or to this one when it has recovered.
    """

    def __init__(self, settings: EndpointEngines, context_tokens: int, *, has_served: bool = False) -> None:
        (self._endpoint,) = settings.endpoints
        key = self._endpoint.api_key()
        self._context_tokens = context_tokens
        self._calls: dict[CallKey, Call] = {}
        """Calls that have not ended."""
        self._ended: dict[CallKey, tuple[Call, Output]] = {}
        """Calls that ended and were not yet returned."""
        self._held: dict[CallKey, Held] = {}
        """Failed calls that have not ended: the server may be the cause."""
        self._served_ts = 0.0
        """When the latest of its served calls was sent."""
        self._error: Exception | None = None
        self._doubt: RequestError | None = None
        """Error of the last call, while the server is suspected."""
        self._num_refusals = 0
        """Refusals before it serves its first call."""
        self._changed = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._open_client(settings, key, has_served))

    def submit(self, request: Request) -> None:
        """Take a request, which is sent in the next step.

        Raises
        ------
        ValueError
            If it requests something that servers do not offer, or has no tokens.
        """
        require(not request.is_beginning, "prompt", "whole: servers wrap it in a template", request.prompt)
        rule = "None: servers do not write to length"
        require(request.output_tokens is None, "output_tokens", rule, request.output_tokens)
        require(request.prompt != (), "prompt", "at least one token", request.prompt)
        num_written = len(written_before(request, self._endpoint))
        rule = f"fewer than max_output_tokens={request.max_output_tokens}"
        require(num_written < request.max_output_tokens, "generated", rule, num_written)
        assert request.key not in self._calls, request.key
        call = self._calls[request.key] = Call(request)
        call.task = self._loop.create_task(self._serve(call))

    def step(self) -> Sequence[Output]:
        """Wait briefly for calls to end; those that failed finally come with their error.

        Raises
        ------
        OutageError
            If the server serves no calls now.
        BackendError
            If it serves no calls now, and one of them may be the cause.
        FatalEngineError
            If no call will ever be served.
        """
        if self._error is None:
            self._loop.run_until_complete(self._wait())
        if self._error is None:
            self._judge()
        if self._error is not None and not self._ended:
            raise self._error
        ended, self._ended = self._ended, {}
        return [response for _, response in ended.values()]

    def abort(self, key: CallKey) -> Output:
        """Abort a request: a server that detects the closed connection drops it."""
        call = self._calls[key] if key in self._calls else self._ended[key][0]
        self._held.pop(key, None)
        self._break_off([call])
        self._calls.pop(key, None)
        self._ended.pop(key, None)
        prompt = call.request.prompt
        num_tokens = len(prompt) if isinstance(prompt, tuple) else None
        return Output(key=key, prompt_tokens=num_tokens, scheduled_ts=call.sent_ts, num_retries=call.num_retries)

    def progress(self) -> Mapping[CallKey, int]:
        """Return no counts: servers send the whole response at the end."""
        return {}

    def check_server(self) -> None:
        """Request the list of models; see `open_engine`."""
        try:
            listed = self._loop.run_until_complete(self._client.list_models())
        except RequestError as error:
            if error.status in NO_LIST:
                return
            is_away = error.fault in (Fault.UNREACHABLE, Fault.THROTTLED)
            is_refused = error.fault in (Fault.REFUSED, Fault.FORMAT)
            if is_away or (self._client.has_served and not is_refused):
                raise OutageError(str(error), error.retry_after_s or 0.0) from None
            raise self._fatal(error) from None
        names = [model.name for model in read_models(listed)]
        if names and self._endpoint.model not in names:
            what = f"model must be one that it serves, got {self._endpoint.model!r}; it serves {names}"
            raise FatalEngineError(self._client.cause(what))

    def close(self) -> None:
        """Abort everything; a worker that ends need not do this."""
        if not self._loop.is_closed():
            self._break_off(self._calls.values())
            self._loop.run_until_complete(self._client.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _open_client(self, settings: EndpointEngines, key: str | None, has_served: bool) -> Client:
        return Client(self._endpoint, settings.patience, key, has_served=has_served)

    def _break_off(self, calls: Iterable[Call]) -> None:
        tasks = [call.task for call in calls if call.task is not None]
        for task in tasks:
            task.cancel()  # outside the loop, so that a task that has not started never starts
        self._loop.run_until_complete(_wait_for(tasks))

    async def _wait(self) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._ended else STEP_S):
                await self._changed.wait()

    async def _serve(self, call: Call) -> None:
        """Process a call until it ends."""
        try:
            async with nullcontext() if call.is_second else self._slots:  # it does not queue after the others again
                await self._may_send.wait()
                content = await self._client.ask(*request_of(call.request, self._endpoint), call)
            try:
                response = response_of(content, call.request, call, self._endpoint, context_tokens=self._context_tokens)
            except RequestError as error:
                raise RequestError(self._client.cause(str(error)), error.fault) from None
        except RequestError as error:
            self._fail(call, error)
        except Exception as error:  # an error of our code, which must not look like a slow server
            self._error = self._error or error
        else:
            self._note_served(call)
            self._end(call, response)
        self._changed.set()

    def _note_served(self, call: Call) -> None:
        """Clear the server as the cause of held calls; an earlier call proves nothing about later ones."""
        self._client.note_served()
        self._num_refusals = 0
        self._served_ts = max(self._served_ts, call.sent_ts or 0.0)
        for key, (error, since_ts) in list(self._held.items()):
            if since_ts <= self._served_ts:
                del self._held[key]
                self._blame(self._calls[key], error)
        if len(self._held) < NUM_REFUSALS:
            self._doubt = None
            self._may_send.set()

    def _fail(self, call: Call, error: RequestError) -> None:
        """Record a finally failed call, or what it shows about the server."""
        fault, has_served = error.fault, self._client.has_served
        if fault in (Fault.UNREACHABLE, Fault.THROTTLED):
            self._error = self._error or OutageError(str(error), error.retry_after_s or 0.0)
        elif fault is Fault.REFUSED or (not has_served and (fault is Fault.FORMAT or error.status == 404)):
            self._error = self._error or self._fatal(error)
        elif fault in (Fault.PASSING, Fault.ELSEWHERE, Fault.INVALID):
            since_ts = (call.sent_ts if fault is Fault.INVALID else call.failed_ts) or 0.0
            if since_ts <= self._served_ts:
                self._blame(call, error)
                return
            self._held[call.request.key] = Held(error, since_ts)
            if len(self._held) >= NUM_REFUSALS or not (has_served or fault is Fault.INVALID):
                self._doubt = error
        else:
            self._end(call, failed(call.request, call, str(error)))
            self._num_refusals += int(not has_served and fault is not Fault.PROMPT)
            if self._num_refusals >= NUM_REFUSALS:
                self._doubt = error
        if self._doubt is not None:
            self._may_send.clear()

    def _blame(self, call: Call, error: RequestError) -> None:
        """Fail a call alone; first try it anew, as the server may have been ill and be well again."""
        if error.fault is Fault.INVALID or call.is_second or call.is_last:
            self._end(call, failed(call.request, call, str(error)))
            return
        call.is_second, call.num_failures, call.failed_ts = True, 0, None
        call.num_retries += 1
        call.task = self._loop.create_task(self._serve(call))

    def _judge(self) -> None:
        """Give up a server that serves none of its calls; one that has served none before is misconfigured."""
        doubt, held = self._doubt, self._held
        if doubt is None and held and held.keys() == self._calls.keys():
            doubt = next(iter(held.values())).error  # no other call is left that could clear the server
        sent = [call for call in self._calls.values() if call.sent_ts is not None]
        if doubt is None or not all(call.failed_ts is not None or call.request.key in held for call in sent):
            return
        if not self._client.has_served:
            self._error = self._fatal(doubt, "; it has served no call")
        elif doubt.fault is Fault.ELSEWHERE or doubt.status in NO_SERVER:
            self._error = OutageError(str(doubt))
        else:
            self._error = BackendError(str(doubt))

    def _fatal(self, error: RequestError, more: str = "") -> FatalEngineError:
        return FatalEngineError(f"{error}{more}; {what_to_do(error, self._endpoint)}")

    def _end(self, call: Call, response: Output) -> None:
        self._calls.pop(response.key, None)
        self._ended[response.key] = (call, response)


async def _wait_for(tasks: Sequence[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
    await asyncio.sleep(0)  # a connection closes its socket one iteration later
