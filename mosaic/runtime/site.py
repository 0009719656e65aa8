"""The interface between a run and the site that executes its plans."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from mosaic.core.chat import Chat
from mosaic.core.results import CallRecord, Inputs, RunResult
from mosaic.core.spending import Cost
from mosaic.core.workload import Call, Expert, ExpertName, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.runtime.backend import Backend
from mosaic.runtime.journal import Journal

Prompts: TypeAlias = Callable[[Call, Inputs], str | Chat]
"""Returns the prompt of a call, given the records of the calls in its ``after``."""


class Site(Protocol):
    """The simulator, engines on this machine, or servers; configured once for a run.

    It provides a backend for the run itself, and others for measurements before it. Measurements have draws of their
    own, so that no price depends on the batch.
    """

    @property
    def name(self) -> str:
        """Name of the kind of site."""

    @property
    def kind(self) -> str:
        """How its results were obtained: simulated, measured or replayed."""

    @property
    def expert_by_server(self) -> Mapping[int, ExpertName] | None:
        """The expert of each worker if workers are servers; None: any expert may be loaded anywhere."""

    def open(self) -> AbstractContextManager[None]:
        """Hold the resources of the site during a run."""

    @property
    def description(self) -> str:
        """Machines and draws of the measurements: the source of profiles."""

    @property
    def cache_key(self) -> tuple[object, ...] | None:
        """Everything that a measurement before a run depends on, beside its calls; None: it is not repeatable."""

    @property
    def world_key(self) -> object:
        """What the outcomes of calls depend on, for any plan and any repetition; None: only its engines know."""

    def evidence(self, result: RunResult) -> Sequence[str]:
        """Describe the basis of a run's times, one line for each simulated kind of worker."""

    @property
    def answers_source(self) -> str:
        """Source of the experts' agreement: measured, fitted or assumed."""

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
        """Return the backend of the run, of an independent run, or of a measurement.

        Parameters
        ----------
        questions, prompts
            The questions, and the prompts of their calls.
        name
            Unique in the run.
        prefixes
            The beginnings of prompts, if they are prefilled ahead of time.
        earlier
            Records of other backends, for calls that calls of this one read.
        is_measured
            Whether it measures: then its draws differ from the run's.
        """

    def costs(self) -> Mapping[ExpertName, Cost]:
        """Price what calls have come to, in earlier starts too, by expert; empty: nothing is billed."""

    def has_begun(self, name: str) -> bool:
        """Return whether an earlier start began a measurement of this name."""

    def command_log(self, backend: Backend) -> Journal | None:
        """Return the log of commands of one of its backends; None: its run cannot be resumed."""

    def calibration(self, experts: Sequence[ExpertName]) -> Workload:
        """Return the questions that show what a gate skips: other questions, or the batch's with other draws.

        They need only the named experts, which have been measured.
        """

    def draw(self, calls: Sequence[Call], earlier: Inputs) -> Sequence[CallRecord] | None:
        """Record answers to calibration questions, without their times; None: only models can answer."""

    def swept_questions(self) -> Sequence[tuple[Question, int]]:
        """List the questions that sweeps use in turn, with the tokens of their prompts."""

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of workers on which an expert may run."""

    def swept_places(self, expert: Expert) -> Sequence[tuple[int, ...]]:
        """List the gangs on which an expert's sessions of a sweep run, in turn."""

    def lower_bound_s(self, backend: Backend) -> float | None:
        """Bound the first layer's makespan from below, from the true lengths; None: not known."""


def prompts_of(graph: CallGraph, questions: Mapping[str, Question], *, is_whole: bool = True) -> Prompts:
    """Write the prompts of a graph's calls, or their beginnings."""
    return lambda call, inputs: graph.prompt(questions[call.key.question], call, inputs, is_whole=is_whole)
