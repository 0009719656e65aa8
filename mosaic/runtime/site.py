"""The interface between a run and the place where its plans are executed."""

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
"""Gives what an expert reads for a call, from what the calls said that it comes after."""


class Site(Protocol):
    """The simulator, engines on this machine, or servers; configured once for a run.

    It gives out a backend for the run itself, and others to measure on before: with draws of their own, so that no
    price knows the batch.
    """

    @property
    def name(self) -> str:
        """Of the kind of place."""

    @property
    def kind(self) -> str:
        """How what comes from it came about: simulated, measured or replayed."""

    @property
    def expert_by_server(self) -> Mapping[int, ExpertName] | None:
        """The expert of each worker, where workers are servers; None: any expert may be loaded anywhere."""

    def open(self) -> AbstractContextManager[None]:
        """Keep what the place needs while a run lasts."""

    @property
    def description(self) -> str:
        """On what, and with which draws, profiles are measured: for their source."""

    @property
    def cache_key(self) -> tuple[object, ...] | None:
        """All that decides what is measured here before a run, beside the calls; None: it may come out differently."""

    @property
    def world_key(self) -> object:
        """What decides how a run's calls come out, whoever plans it and however often; None: only its engines know."""

    def evidence(self, result: RunResult) -> Sequence[str]:
        """Say what the times of a run rest on, a line for each kind of worker that is simulated."""

    @property
    def answers_source(self) -> str:
        """Where the agreement of the experts comes from: measured, fitted or assumed."""

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
        """Give the backend of the run, of another that goes on by itself, or of a measurement.

        Parameters
        ----------
        questions, prompts
            The questions, and the prompts of their calls.
        name
            Unique in the run.
        prefixes
            What prompts begin with, where they are prefilled ahead of time.
        earlier
            Records, of other backends, of calls that those of this one come after.
        is_measured
            Whether it measures: then its draws are others than the run's.
        """

    def costs(self) -> Mapping[ExpertName, Cost]:
        """Price what calls have come to, in earlier starts too, by expert; empty: nothing is billed."""

    def has_begun(self, name: str) -> bool:
        """Tell whether an earlier start began a measurement of this name."""

    def command_log(self, backend: Backend) -> Journal | None:
        """Give the log of commands of a backend that it gave; None: it cannot be interrupted and go on."""

    def calibration(self, experts: Sequence[ExpertName]) -> Workload:
        """Give the questions that show what a gate leaves: others than the batch's, or the batch with other draws.

        They need only the experts that are named: those that have been measured.
        """

    def draw(self, calls: Sequence[Call], earlier: Inputs) -> Sequence[CallRecord] | None:
        """Record what calls say to calibration questions, without their times; None: only models can answer."""

    def swept_questions(self) -> Sequence[tuple[Question, int]]:
        """List the questions that sweeps go through in turn, with the tokens of their prompts."""

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of workers where an expert may run."""

    def swept_places(self, expert: Expert) -> Sequence[tuple[int, ...]]:
        """List the gangs where an expert's sessions of a sweep run, in turn."""

    def lower_bound_s(self, backend: Backend) -> float | None:
        """Bound the first layer's makespan from below, from what really happened; None: not known."""


def prompts_of(graph: CallGraph, questions: Mapping[str, Question], *, is_whole: bool = True) -> Prompts:
    """Write the prompts of a graph's calls, or their beginnings."""
    return lambda call, inputs: graph.prompt(questions[call.key.question], call, inputs, is_whole=is_whole)
