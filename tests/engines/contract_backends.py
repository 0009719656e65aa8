"""The executor for the contract suite: an engine that has no model, vLLM where it is installed, and servers."""

import atexit
import functools
import json
from pathlib import Path

from mosaic.core.engine_options import Device
from mosaic.core.workload import AnswerKind, Question
from mosaic.engines.backend import EngineBackend
from mosaic.engines.endpoint import ENDPOINT_ENGINE, EndpointEngines
from mosaic.engines.engine import EngineSpec
from mosaic.engines.local_launcher import VLLM_ENGINE, LocalLauncher
from mosaic.engines.requests import RunContent, ServedExpert
from tests.engines.executor_runs import FAKE_ENGINE, OPTIONS, Runs
from tests.engines.fake_server import FakeServer, prompt_of
from tests.engines.kept_launcher import kept_launcher
from tests.engines.tiny_checkpoint import write_tiny_checkpoint


def launcher_of(engine_module: str) -> LocalLauncher:
    """One launcher for all tests of a process, started: no run's clock counts imports."""
    is_server = engine_module == ENDPOINT_ENGINE
    settings = EndpointEngines(endpoints=(server_of("A").endpoint,)) if is_server else OPTIONS
    return kept_launcher(settings, engine_module, None if is_server else Device.CPU).started()


def make_executor(engine_module: str, outcomes, *, experts, cluster, folder: Path) -> EngineBackend:
    """Make the backend of one run: a replay on tiny checkpoints, found by the experts' names of them.

    Over a folder where a run was interrupted it goes on with it; ``log`` is the log of its commands.
    """
    for expert in experts:
        write_tiny_checkpoint(folder / expert.checkpoint, seed=len(expert.name))
    launcher = launcher_of(engine_module)
    return Runs(folder, launcher, experts=experts, cluster=cluster, outcomes=outcomes).backend()


make_fake_executor = functools.partial(make_executor, FAKE_ENGINE)
make_vllm_executor = functools.partial(make_executor, VLLM_ENGINE)


def make_fake_servers(outcomes, *, experts, cluster, folder: Path) -> EngineBackend:
    """Make the backend of one run on servers, one an expert, whose prompts say what to answer."""
    questions: dict[str, Question] = {}

    def prompts(call, inputs) -> str:
        questions[call.key.question] = Question(
            id=call.key.question, prompt_tokens=call.prompt_tokens, answer_kind=AnswerKind.CHOICE, num_options=4
        )
        outcome = outcomes(call, inputs)
        return json.dumps([outcome.output_tokens, outcome.answer, call.prompt_tokens, *call.key])

    return EngineBackend(
        name="endpoint",
        experts=experts,
        cluster=cluster,
        journal=folder / "journal",
        content=RunContent(prompts=prompts, questions=questions),
        engines=ServerOfExpert(),
        launcher=launcher_of(ENDPOINT_ENGINE),
    )


class ServerOfExpert:
    """Engines that are one server an expert, whichever the workers; a gang is one too."""

    def served(self, expert) -> ServedExpert:
        return ServedExpert(
            expert=expert, context_tokens=expert.context_tokens, vocab_size=None, decides=("server", expert.name)
        )

    def spec(self, expert, workers) -> EngineSpec:
        return EngineSpec(
            expert=expert.name,
            num_workers=1,
            context_tokens=expert.context_tokens,
            max_num_seqs=8,
            settings=EndpointEngines(endpoints=(server_of(expert.name).endpoint,)),
            is_remote=True,
        )


@functools.cache
def server_of(expert: str) -> FakeServer:
    """One server an expert for all tests of a process."""
    server = FakeServer(expert, as_told)
    atexit.register(server.close)
    return server


def as_told(body, number):
    """Write as many tokens as the prompt says, and its answer unless that is cut off."""
    tokens, answer, prompt_tokens, *_ = json.loads(prompt_of(body))
    written = min(tokens, body["max_tokens"])
    said, reason = (f"The answer is {answer}.", "stop") if written == tokens else ("The", "length")
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": written}
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": said}}
    return {"choices": [choice], "usage": counts}
