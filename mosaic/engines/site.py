"""Real engines as a site that runs plans: live, or writing to the lengths of a simulated world."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeVar

from mosaic.core.cluster import Cluster, may_be_gang
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError, InUseError
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallRecord, Inputs, RunResult, inputs_of
from mosaic.core.safe_text import file_name
from mosaic.core.spending import Cost, Payee, Spent
from mosaic.core.workload import Call, Expert, ExpertName, Question, Workload
from mosaic.engines.backend import EngineBackend
from mosaic.engines.billing import Billing
from mosaic.engines.requests import RunContent
from mosaic.runtime.backend import Backend
from mosaic.runtime.journal import Journal
from mosaic.runtime.run_lock import hold, is_held
from mosaic.runtime.site import Prompts
from mosaic.runtime.sweep import of_questions
from mosaic.runtime.unpriced import gangs_of

_Said = TypeVar("_Said")


class BackendMaker(Protocol):
    """Makes the backend of a run, or of a measurement."""

    def __call__(self, journal: Path, content: RunContent, *, is_measured: bool) -> EngineBackend:
        """Make it; measurements may use no cache hits, since they send the same prompts repeatedly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The worlds that determine lengths and answers of calls."""

    run: Outcomes
    calibration: Outcomes
    draw: Callable[[Sequence[Call], Inputs], Sequence[CallRecord]]
    """Draws the answers of calls in the calibration world."""
    answers_source: str


@dataclass(kw_only=True, eq=False)
class EngineSite:
    """Runs on engines that it starts, or on servers; every measurement has a journal of its own.

    If it is started again with the same journals, it continues where it stopped.
    """

    name: str
    """vllm or endpoint."""
    make: BackendMaker
    batch: Workload
    others: Callable[[], Workload]
    """Returns the questions for measurements."""
    cluster: Cluster
    journal: Path
    """Folder of all journals of the run."""
    seed: int
    """Of the run."""
    profile_seed: int
    """Of measurements."""
    description: str
    """See ``Site``."""
    num_calibration_questions: int = 0
    """Number of questions that show what a gate skips; servers need none."""
    replayed: Replayed | None = None
    """None: live, the models decide."""
    expert_by_server: Mapping[int, ExpertName] | None = None
    """See ``Site``."""
    billing: Billing | None = None
    """Of servers; None: nothing is billed."""
    opened: Callable[[], AbstractContextManager[object]] = nullcontext
    """Holds the resources of engines during a run."""
    options: EngineOptions | None = None
    """Of engines that the site starts; None: they belong to others."""
    problems: Callable[[bool], Sequence[str]]
    """Lists all reasons why the engines cannot start, without a run folder.

    The argument tells whether there are other problems: then no engine is kept.
    """
    give_up: Callable[[], object] = lambda: None
    """Ends what this has started, if no run follows."""
    cache_key: None = field(default=None, init=False)
    world_key: None = field(default=None, init=False)
    _lost: dict[int, str] = field(default_factory=dict, init=False)
    """Workers that any measurement, or the run, has given up."""
    _spent: list[Mapping[Payee, Spent]] = field(default_factory=list, init=False)
    """What the calls of each backend have come to, in earlier starts too."""

    @property
    def kind(self) -> str:
        """Live responses are measured."""
        return "measured" if self.replayed is None else "replayed"

    @property
    def answers_source(self) -> str:
        """Measured, unless the answers are those of a simulated world."""
        return "measured" if self.replayed is None else self.replayed.answers_source

    @property
    def is_in_use(self) -> bool:
        """Whether another command uses the journals now."""
        return is_held(self.journal)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the run's lock, for all its stages, and keep the process that imports the engines.

        Raises
        ------
        InUseError
            If another command uses the journals.
        """
        try:
            with hold(self.journal), self.opened():
                yield
        except InUseError:
            self.give_up()
            raise

    def backend(
        self,
        questions: Mapping[str, Question],
        prompts: Prompts,
        *,
        name: str = "run",
        prefixes: Prompts | None = None,
        earlier: Inputs | None = None,
        is_measured: bool = False,
    ) -> Backend:
        """Return the backend of the run, or one for measurements, whose responses differ from any batch's."""
        seed = calibration_seed(self.profile_seed) if is_measured else self.seed
        if self.replayed is None:
            read = _reading(earlier, prompts)
            content = RunContent(prompts=read, prefixes=prefixes, questions=questions, root_seed=seed)
        else:
            outcomes = self.replayed.calibration if is_measured else self.replayed.run
            content = RunContent(outcomes=_reading(earlier, outcomes), root_seed=seed)
        backend = self.make(self.journal / file_name(name), content, is_measured=is_measured)
        backend.lost = self._lost
        if self.billing is not None:
            backend.billing = self.billing
            self._spent.append(backend.log.state.spent)
        return backend

    def costs(self) -> Mapping[ExpertName, Cost]:
        """Price what the calls of its backends have come to, in earlier starts too; empty: nothing is billed."""
        if self.billing is None:
            return {}
        total: dict[Payee, Spent] = {}
        for spent in self._spent:
            for payee, each in dict(spent).items():  # a display asks while the run goes on
                total[payee] = total.get(payee, Spent()).plus(each)
        return self.billing.costs(total)

    def has_begun(self, name: str) -> bool:
        """Return whether a stage or measurement of this name has a journal."""
        return (self.journal / file_name(name)).is_dir()

    def command_log(self, backend: Backend) -> Journal | None:
        """Return the log in the journal of one of its backends."""
        assert isinstance(backend, EngineBackend), "it gives no others"
        return backend.log

    def calibration(self, experts: Sequence[ExpertName]) -> Workload:
        """Return the first calibration questions, with only these experts; for a replay, the batch."""
        if self.replayed is not None:
            return self.batch
        return first_questions(self.others(), self.num_calibration_questions, experts)

    def draw(self, calls: Sequence[Call], earlier: Inputs) -> Sequence[CallRecord] | None:
        """Draw replayed answers; None: live, only models can answer."""
        return None if self.replayed is None else self.replayed.draw(calls, earlier)

    def swept_questions(self) -> Sequence[tuple[Question, int]]:
        """List the calibration questions; in a replay, prompts have the lengths of the batch's."""
        if self.replayed is not None:
            known = {question.id: question for question in self.batch.questions}
            return [(known[call.key.question], call.prompt_tokens) for call in self.batch.calls]
        others = self.others()
        tokens = {call.key.question: call.prompt_tokens for call in others.calls}
        return [(question, tokens.get(question.id, question.prompt_tokens)) for question in others.questions]

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of the workers; without lost workers, if possible.

        A worker that was lost during a measurement is not tried again.
        """
        all_places = gangs_of(expert, self.cluster.num_workers)
        places = [place for place in all_places if may_be_gang(self.cluster.select(place))]
        if self.expert_by_server is not None:
            places = [(worker,) for worker, name in self.expert_by_server.items() if name == expert.name]
        return [place for place in places if self._lost.keys().isdisjoint(place)] or places

    def swept_places(self, expert: Expert) -> Sequence[tuple[int, ...]]:
        """Return all gangs: workers that are all busy may slow each other down, as they will in a run."""
        return self.places(expert)

    def evidence(self, result: RunResult) -> Sequence[str]:
        """Return nothing: these times are measured."""
        return ()

    def lower_bound_s(self, backend: Backend) -> float | None:
        """Always None: only a simulation knows the true lengths."""
        return None


def first_questions(workload: Workload, num_questions: int, experts: Sequence[ExpertName]) -> Workload:
    """Reduce a workload to its first questions, without those of other experts.

    Raises
    ------
    BackendError
        If none is left.
    """
    others = {call.key.question for call in workload.calls if call.expert not in experts}
    questions = tuple(question for question in workload.questions if question.id not in others)[:num_questions]
    if not questions:
        raise BackendError(
            f"workload {workload.name}: calibration questions must ask only experts that are priced, "
            f"{sorted(experts)}, got none: give profile.aggregator_path, or more questions"
        )
    return of_questions(workload, questions)


def calibration_seed(seed: int) -> int:
    """Derive the root seed of measured responses: no batch shares it, even with the same questions."""
    return int.from_bytes(blake2b(f"{seed}|calibration".encode(), digest_size=6).digest(), "little")


def _reading(earlier: Inputs | None, of: Callable[[Call, Inputs], _Said]) -> Callable[[Call, Inputs], _Said]:
    """Make records of other backends available to the calls of this one."""
    if not earlier:
        return of
    return lambda call, inputs: of(call, inputs_of(call, earlier, inputs))
