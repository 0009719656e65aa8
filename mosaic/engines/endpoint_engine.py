"""Serves calls on an OpenAI-compatible server: an engine like any other, whose iterations happen elsewhere.

No response is streamed, so the first token's instant is not known, nor what an aborted call had written. A call is
scheduled when its request is sent, which includes its wait in the server's queue.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from mosaic.core.checks import require
from mosaic.core.errors import BackendError, FatalEngineError
from mosaic.engines.endpoint import EndpointSettings
from mosaic.engines.endpoint_advice import what_to_do
from mosaic.engines.endpoint_client import ASKS_FOR_TIME, AskError, Client, Fault, Tries
from mosaic.engines.endpoint_messages import request_of, response_of, written_before
from mosaic.engines.engine import Aborted, EngineSpec, Generation, Request

STEP_S = 0.02
"""A step in which nothing ends takes so long."""
NUM_REFUSALS = 4
"""A server that has served no call is doubted after so many refusals, or one call that all its retries did not save.

One that has served calls is doubted after so many calls in a row that its errors made fail, all retries included; calls
that it refuses are then their own matter, and one that asks for time lives.
"""
NO_LIST = (404, 405, 501)
"""What servers say that do not list their models."""


class ServerUnreachableError(BackendError):
    """After all retries nobody answers where the server should be, or nothing but errors comes from there any more."""


def prepare(settings: object) -> None:
    """Import what each worker would otherwise import for itself."""
    import aiohttp

    assert aiohttp.ClientSession is not None


def open_engine(spec: EngineSpec) -> "EndpointEngine":
    """Check that a server is there and knows the model that it will be asked for.

    Raises
    ------
    ValueError
        If the server is another expert's, or has to be several workers.
    ServerUnreachableError
        If nobody answers.
    FatalEngineError
        If key, URL or model are wrong. A server that does not list its models passes.
    """
    settings: object = spec.settings
    if not isinstance(settings, EndpointSettings):
        raise TypeError(f"settings of an endpoint's engine must be EndpointSettings, got {settings!r}")
    endpoint = settings.endpoint
    rule = f"{endpoint.expert!r}: {endpoint.base_url} serves it, and a server keeps its expert"
    require(spec.expert == endpoint.expert, "expert", rule, spec.expert)
    rule = "one: a server is one worker, whatever GPUs it spans; set the expert's tp_degree to 1"
    require(spec.num_workers == 1, f"workers of {spec.expert}", rule, spec.num_workers)
    engine = EndpointEngine(settings, spec.context_tokens)
    try:
        engine.check_server()
    except BaseException:
        engine.close()
        raise
    return engine


def is_device_lost(error: Exception) -> bool:
    """Say whether the server is gone, so that its calls must be served elsewhere."""
    return isinstance(error, ServerUnreachableError)


class Call(Tries):
    """A request that has not ended."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request
        self.task: asyncio.Task[None] | None = None


class EndpointEngine:
    """The requests that one server has in its hands; their event loop runs inside of `step`.

    A server that was reached and serves no call, or no more, is not tried with all calls of a run: once it is doubted
    nothing more is sent, and when every request that it still has failed at least once, all is lost, or the server is.
    A call that is served clears it.
    """

    def __init__(self, settings: EndpointSettings, context_tokens: int) -> None:
        key = settings.endpoint.api_key()
        self._endpoint = settings.endpoint
        self._context_tokens = context_tokens
        self._calls: dict[int, Call] = {}
        """Those that have not ended, by the number of the request."""
        self._ended: dict[int, tuple[Call, Generation]] = {}
        """Those that ended and were not returned yet."""
        self._error: Exception | None = None
        self._doubt: AskError | None = None
        """How the last call failed, while the server is doubted."""
        self._num_refusals = 0
        """Since it last served a call."""
        self._has_served = False
        self._news = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(_open_client(settings, key))

    def submit(self, request: Request) -> None:
        """Take a request, which is sent in the next step.

        Raises
        ------
        ValueError
            If it asks for what servers do not do, or for nothing.
        """
        require(not request.is_beginning, "prompt", "whole: servers wrap it in a template", request.prompt)
        rule = "None: servers do not write to length"
        require(request.output_tokens is None, "output_tokens", rule, request.output_tokens)
        require(request.prompt != (), "prompt", "at least one token", request.prompt)
        num_written = len(written_before(request, self._endpoint))
        rule = f"fewer than max_output_tokens={request.max_output_tokens}"
        require(num_written < request.max_output_tokens, "generated", rule, num_written)
        assert request.number not in self._calls, request.number
        call = self._calls[request.number] = Call(request)
        call.task = self._loop.create_task(self._serve(call))

    def step(self) -> Sequence[Generation]:
        """Wait a moment for calls to end; those that failed for good come with their error.

        Raises
        ------
        ServerUnreachableError
            If nobody answers any more.
        FatalEngineError
            If no call will ever be served.
        """
        if self._error is None:
            self._loop.run_until_complete(self._wait())
        if self._doubt is not None and all(
            call.num_retries for call in self._calls.values() if call.sent_ts is not None
        ):
            self._give_up(self._doubt)
        if self._error is not None and not self._ended:
            raise self._error
        ended, self._ended = self._ended, {}
        return [response for _, response in ended.values()]

    def abort(self, number: int) -> Aborted:
        """Break a request off: a server that sees its connection close drops it."""
        call = self._calls[number] if number in self._calls else self._ended[number][0]
        self._break_off([call])
        self._calls.pop(number, None)
        self._ended.pop(number, None)
        prompt = call.request.prompt
        return Aborted(
            prompt_tokens=len(prompt) if isinstance(prompt, tuple) else None,
            token_ids=(),
            scheduled_ts=call.sent_ts,
            first_token_ts=None,
        )

    def progress(self) -> Mapping[int, int]:
        """Say nothing: servers send all of a response at the end."""
        return {}

    def check_server(self) -> None:
        """Ask for the list of models; see `open_engine`."""
        try:
            listed = self._loop.run_until_complete(self._client.ask("models", None, Tries()))
        except AskError as error:
            if error.status in NO_LIST:
                return
            if error.fault is Fault.UNREACHABLE:
                raise ServerUnreachableError(str(error)) from None
            raise self._fatal(error) from None
        models = listed.get("data") if isinstance(listed, dict) else None
        names = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        if names and self._endpoint.model not in names:
            what = f"model must be one that it serves, got {self._endpoint.model!r}; it serves {names}"
            raise FatalEngineError(self._client.cause(what))

    def close(self) -> None:
        """Break everything off; a worker that ends need not."""
        if not self._loop.is_closed():
            self._break_off(self._calls.values())
            self._loop.run_until_complete(self._client.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _break_off(self, calls: Iterable[Call]) -> None:
        tasks = [call.task for call in calls if call.task is not None]
        for task in tasks:
            task.cancel()  # outside of the loop, so that one which has not started never does
        self._loop.run_until_complete(_wait_for(tasks))

    async def _wait(self) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._ended else STEP_S):
                await self._news.wait()

    async def _serve(self, call: Call) -> None:
        """See a call through to its end."""
        try:
            async with self._slots:
                await self._may_send.wait()
                content = await self._client.ask(*request_of(call.request, self._endpoint), call)
            try:
                response = response_of(content, call.request, call, self._endpoint, context_tokens=self._context_tokens)
            except AskError as error:
                raise AskError(self._client.cause(str(error)), error.fault) from None
        except AskError as error:
            self._fail(call, error)
        except Exception as error:  # a mistake of ours, which must not pass for a server that takes long
            self._error = self._error or error
        else:
            self._has_served, self._doubt, self._num_refusals = True, None, 0
            self._may_send.set()
            self._end(call, response)
        self._news.set()

    def _fail(self, call: Call, error: AskError) -> None:
        """Take note of a call that failed for good."""
        fault = error.fault
        if fault is Fault.UNREACHABLE:
            self._error = self._error or ServerUnreachableError(str(error))
        elif fault is Fault.SERVER or (fault is Fault.FORMAT and not self._has_served):
            self._error = self._error or self._fatal(error)
        else:
            self._end(call, _failed(call, str(error)))
            self._num_refusals += self._weight(error)
            if self._num_refusals >= NUM_REFUSALS:
                self._doubt = error
                self._may_send.clear()

    def _weight(self, error: AskError) -> int:
        """Say how much a failure speaks against the server."""
        if self._has_served:
            return int(error.fault is Fault.PASSING and error.status not in ASKS_FOR_TIME)
        return 0 if error.fault is Fault.PROMPT else NUM_REFUSALS if error.fault is Fault.PASSING else 1

    def _give_up(self, doubt: AskError) -> None:
        """Lose a server that served calls, for which another may stand in; one that served none is set up wrong."""
        if not self._has_served:
            raise self._fatal(doubt, "; it has served no call")
        why = f"{doubt}; the last {self._num_refusals} calls failed with errors of the server, and none was served"
        self._error = self._error or ServerUnreachableError(why)

    def _fatal(self, error: AskError, more: str = "") -> FatalEngineError:
        return FatalEngineError(f"{error}{more}; {what_to_do(error, self._endpoint)}")

    def _end(self, call: Call, response: Generation) -> None:
        self._calls.pop(response.number, None)
        self._ended[response.number] = (call, response)


def _failed(call: Call, cause: str) -> Generation:
    return Generation(
        number=call.request.number,
        token_ids=(),
        text=None,
        finish_reason="",
        prompt_tokens=None,
        cached_tokens=0,
        num_preemptions=0,
        scheduled_ts=call.sent_ts,
        first_token_ts=None,
        last_token_ts=time.monotonic(),
        visible_tokens=None,
        thinking_opened=False,
        error=cause,
        num_retries=call.num_retries,
        output_tokens=0,
    )


async def _open_client(settings: EndpointSettings, key: str | None) -> Client:
    return Client(settings.endpoint, settings.patience, key)


async def _wait_for(tasks: Sequence[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
    await asyncio.sleep(0)  # a connection closes its socket one iteration later
