"""Real engines, or servers, as the place where a run's plans are executed."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from experiments.config.execution import AlwaysAggregate, WatchedBackend, already_aggregated
from experiments.config.executor_wiring import EngineSetup, Mode, ServerSetup
from experiments.config.live_texts import (
    calibration_number,
    calibration_seed,
    first_questions,
    prompt_tokens_by_question,
    response_line,
    visible_texts,
)
from experiments.config.simulated_execution import calibration_calls, typical_calls
from experiments.config.stage_wiring import StageSetup
from experiments.config.wiring import Setup
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallStatus, Listener, RunResult
from mosaic.core.workload import Call, CallKey, Expert, Question
from mosaic.engines.endpoint_backend import EndpointBackend
from mosaic.engines.host_process import HostProcess
from mosaic.engines.vllm_backend import VllmBackend
from mosaic.engines.vllm_jobs import Prompts
from mosaic.pipelines.gates.gate import Never
from mosaic.pipelines.prompts import aggregator_prompts, expert_prompt, expert_prompts
from mosaic.planning.profiles import Profile, load_profile
from mosaic.report.progress import show_workers
from mosaic.runtime.aggregator_sweep import aggregator_places, sweep_aggregator
from mosaic.runtime.backend import Backend
from mosaic.runtime.journal_records import EndedCall
from mosaic.runtime.run import make_problem
from mosaic.runtime.second_stage import SecondStage
from mosaic.runtime.sweep import run_sweep
from mosaic.runtime.worker_state import WorkerState

_Swept = TypeVar("_Swept")


class RealExecution:
    """Runs the stages of one run on engines that it starts, or on servers; each stage has a journal of its own.

    Started again over the same journals it goes on where it stopped.
    """

    def __init__(
        self, setup: Setup, executor: EngineSetup | ServerSetup, journal: Path, host: HostProcess | None
    ) -> None:
        self._setup = setup
        self._executor = executor
        self._journal = journal
        self._host = host
        self._tell: Callable[[WorkerState], None] | None = None
        self._profile: Profile | None = None
        self._stages: list[VllmBackend | EndpointBackend] = []

    @property
    def _is_live(self) -> bool:
        return self._executor.mode is Mode.LIVE

    def profile(self) -> Profile:
        """Read the profile, or sweep sessions on calibration questions for the experts that have calls."""
        setup = self._setup
        if setup.profile_path is not None:
            self._profile = load_profile(setup.profile_path)
            return self._profile
        called = setup.workload.num_calls_by_expert
        experts = [expert for expert in setup.experts if expert.name in called]
        asked = setup.calibration() if self._is_live else setup.workload
        tokens = [call.prompt_tokens for call in asked.calls]
        if self._is_live:
            texts = [expert_prompt(question) for question in asked.questions]
            tokens = prompt_tokens_by_question(asked)
            prompts = lambda call: texts[calibration_number(call.key) % len(texts)]  # noqa: E731
            backend = self._backend("profile", experts, prompts, is_measured=True)
        else:
            backend = self._backend("profile", experts, outcomes=setup.calibration_world().outcome, is_measured=True)
        sweep = partial(
            run_sweep,
            setup.sweep,
            experts,
            setup.cluster,
            self._shown(backend),
            lambda i: tokens[i % len(tokens)],
            f"{self._mode_text()} sweep of {asked.name} on {setup.hardware.gpu.name}, seed {setup.profile_seed}"
            + setup.length_error_text,
            lambda expert, session: self._workers_of(expert, session, len(experts)),
        )
        self._profile = self._again_if_disturbed("profile", sweep)
        return self._profile

    def experts(self) -> Backend:
        """Give the backend of the expert stage."""
        setup = self._setup
        if self._is_live:
            made = self._backend(
                "experts", setup.experts, expert_prompts(setup.workload.questions), questions=setup.workload.questions
            )
        else:
            made = self._backend("experts", setup.experts, outcomes=setup.world().outcome)
        self._stages.append(made)
        return self._shown(made)

    def aggregator_profile(self, stage: StageSetup, plan: Plan) -> Profile:
        """Read the aggregator's profile, or measure it on what calibration questions leave to the aggregator."""
        setup = self._setup
        if setup.aggregator_profile_path is not None:
            return load_profile(setup.aggregator_profile_path)
        prompts, outcomes = None, None
        if self._is_live:
            calls, prompts = self._live_calibration(stage)
        else:
            calls, read = calibration_calls(setup, stage, plan)
            outcomes = read.outcome
        entries = []
        for degree in stage.aggregator.tp_degrees:
            expert = stage.aggregator.shaped(degree)
            name = f"profile_aggregator_tp{degree}"
            backend = self._shown(self._backend(name, (expert,), prompts, outcomes=outcomes, is_measured=True))
            sweep = partial(sweep_aggregator, expert, calls, setup.cluster, backend, self._places_of(expert))
            entries.append(self._again_if_disturbed(name, sweep))
        return Profile(
            source=f"{self._mode_text()} aggregator of {setup.workload.name} after gate={stage.gate.name} on "
            f"{setup.hardware.gpu.name}, seed {setup.profile_seed}",
            entries=tuple(entries),
        )

    def aggregator(self, stage: StageSetup, first: RunResult) -> Callable[[Expert], Backend]:
        """Give what makes the second stage's backend; the aggregator reads what the experts really wrote."""
        setup = self._setup

        def make(expert: Expert) -> Backend:
            if self._is_live:
                texts = visible_texts(self._stages[0].responses())
                prompts = self._aggregator_prompts(stage, setup.workload.questions, first, texts)
                made = self._backend("aggregator", (expert,), prompts, questions=setup.workload.questions)
            else:
                made = self._backend("aggregator", (expert,), outcomes=setup.world().after(first.calls).outcome)
            self._stages.append(made)
            return self._shown(made)

        return make

    def always_aggregate(self, stage: StageSetup, first: RunResult, second: SecondStage) -> AlwaysAggregate:
        """Tell what aggregating every question gives: known only where the gate skipped none."""
        return already_aggregated(first, second) if isinstance(stage.gate, Never) else AlwaysAggregate()

    @property
    def skip_source(self) -> str:
        """Measured, unless the answers are those of a simulated world."""
        return "measured" if self._is_live else self._setup.answers.source

    def errors(self) -> Mapping[str, int]:
        """Count what made calls fail, by error."""
        return Counter(
            entry.error for entry in self._ended().values() if entry.status is CallStatus.FAILED and entry.error
        )

    def files(self, calls: Sequence[Call]) -> Mapping[str, bytes]:
        """Give the texts of a live run, in the order of the calls."""
        if not self._is_live:
            return {}
        ended = self._ended()
        lines = [response_line(ended[call.key]) for call in calls if call.key in ended]
        return {"responses.jsonl": "".join(lines).encode()}

    def _ended(self) -> dict[CallKey, EndedCall]:
        return {key: entry for stage in self._stages for key, entry in stage.responses().items()}

    def replaying(self, experts: Sequence[Expert], outcomes: Outcomes, name: str) -> Backend:
        """Give a backend that writes to lengths, whatever the run's mode, with a journal of its own."""
        return self._shown(self._backend(name, experts, outcomes=outcomes, is_measured=True))

    def _live_calibration(self, stage: StageSetup) -> tuple[tuple[Call, ...], Prompts]:
        """Let the experts answer calibration questions; gives the calls that the gate leaves, and their prompts."""
        setup = self._setup
        assert self._profile is not None, "the experts are profiled before the aggregator"
        known = {entry.expert for entry in self._profile.entries}
        asked = first_questions(setup.calibration(), self._executor.num_calibration_questions, known)
        problem = make_problem(
            asked, experts=setup.experts, cluster=setup.cluster, profile=self._profile, costs=setup.costs
        )
        backend = self._backend(
            "calibration", setup.experts, expert_prompts(asked.questions), questions=asked.questions, is_measured=True
        )
        result = self._shown(backend).execute(setup.scheduler.plan(problem), asked.calls)
        calls = typical_calls(asked, result.calls, stage)
        return calls, self._aggregator_prompts(stage, asked.questions, result, visible_texts(backend.responses()))

    def _aggregator_prompts(
        self, stage: StageSetup, questions: Sequence[Question], first: RunResult, texts: Mapping[CallKey, str]
    ) -> Prompts:
        aggregator = stage.aggregator
        return aggregator_prompts(
            questions, first.calls, texts, aggregator.expert, min_output_tokens=aggregator.min_output_tokens
        )

    def _backend(
        self,
        name: str,
        experts: Sequence[Expert],
        prompts: Prompts | None = None,
        *,
        outcomes: Outcomes | None = None,
        questions: Sequence[Question] = (),
        is_measured: bool = False,
    ) -> VllmBackend | EndpointBackend:
        """Make the backend of a stage; one that is measured for prices has luck of its own.

        It asks the same prompts again and again, so nothing of them may be found in a cache.
        """
        executor, setup = self._executor, self._setup
        seed = calibration_seed(setup.profile_seed) if is_measured else setup.seed
        known = {question.id: question for question in questions}
        if isinstance(executor, ServerSetup):
            assert prompts is not None, "servers answer real prompts only"
            # Each server's expert must be known, whether this stage calls it or not.
            pool = {expert.name: expert for expert in (*setup.experts, *experts)}
            return EndpointBackend(
                experts=tuple(pool.values()),
                cluster=setup.cluster,
                journal=self._journal / name,
                endpoints=executor.endpoints,
                prompts=prompts,
                questions=known,
                root_seed=seed,
                max_in_flight=executor.max_in_flight,
                patience=executor.patience,
                on_state=self._tell_state,
            )
        return VllmBackend(
            experts=experts,
            cluster=setup.cluster,
            journal=self._journal / name,
            prompts=prompts,
            questions=known,
            outcomes=outcomes,
            root_seed=seed,
            settings=replace(executor.settings, prefix_caching=False) if is_measured else executor.settings,
            checkpoints=executor.checkpoints,
            host=self._host,
            patience=executor.patience,
            on_state=self._tell_state,
        )

    def _shown(self, backend: Backend) -> Backend:
        return WatchedBackend(backend, self._watch)

    @contextmanager
    def _watch(self, plan: Plan) -> Iterator[Listener | None]:
        with show_workers(plan) as (listener, tell):
            self._tell = tell
            try:
                yield listener
            finally:
                self._tell = None

    def _tell_state(self, state: WorkerState) -> None:
        if self._tell is not None:
            self._tell(state)

    def _places_of(self, expert: Expert) -> list[tuple[int, ...]]:
        if isinstance(self._executor, ServerSetup):
            return [(worker,) for worker, name in self._executor.expert_by_worker.items() if name == expert.name]
        return aggregator_places(expert, self._setup.cluster.num_workers)

    def _workers_of(self, expert: Expert, session: int, num_experts: int) -> tuple[int, ...]:
        """Take turns: workers that are all busy may slow each other down, which is what a run will meet.

        One place further in each round, so that no expert finds itself loaded already.
        """
        places = self._places_of(expert)
        return places[(session + session // num_experts) % len(places)]

    def _again_if_disturbed(self, name: str, sweep: Callable[[], _Swept]) -> _Swept:
        try:
            return sweep()
        except DisturbedSweepError:
            shutil.rmtree(self._journal / name)
            return sweep()

    def _mode_text(self) -> str:
        return "measured" if self._is_live else "replayed"
