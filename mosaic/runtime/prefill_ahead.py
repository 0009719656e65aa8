"""Prefills prompts ahead of time: prompts grow in engines that are up while the calls that they quote still run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from mosaic.core.commands import Command, Prefill
from mosaic.core.events import Event, Finished
from mosaic.core.view import View
from mosaic.core.workload import Call, ExpertName, NodeName
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder
from mosaic.pipelines.questions import Questions
from mosaic.planning.profiles import Profile


class PrefillAhead:
    """Prefills the prompt of a call slot by slot, in a session of its expert that is up, while its inputs still run.

    Whenever a call of a question ends, the prompts that will quote it can grow. Their known length ends before the
    first unended call in their order (``PrefillOrder``). The new part is prefilled, and the call itself is later sent
    to the session that holds its beginning. Without a session of the expert that is up, nothing happens. This
    controller must come after the pipeline, which has then submitted the ready calls.

    References
    ----------
    Faster-MoA, arXiv 2512.18126, overlaps prefill and decode by such prefill-only requests.
    """

    reacts = True

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._homes: dict[tuple[str, NodeName, ExpertName], tuple[int, int]] = {}
        """The session that prefills for an expert's calls of a node, and how many of the question's inputs it read."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reconsider the question of an ended call."""
        if isinstance(event, Finished):
            self._questions.record(event.record)
            return list(self._read_on(event.record.key.question, view))
        return ()

    def home(self, call: Call, view: View) -> int | None:
        """Return the session that holds the beginning of a call, while it takes calls."""
        number, _ = self._homes.get((call.key.question, call.key.node, call.expert), (None, 0))
        return number if number is not None and view.is_open(number) else None

    def _read_on(self, question: str, view: View) -> Iterator[Command]:
        for call, num_read in self._questions.openings(question):
            place = call.key.question, call.key.node, call.expert
            number = self.home(call, view)
            if number is None:
                number = self._session_for(call.expert, view)
            elif self._homes[place][1] >= num_read:
                continue
            if number is not None:
                self._homes[place] = number, num_read
                yield Prefill(call, number, num_read)

    def _session_for(self, expert: ExpertName, view: View) -> int | None:
        """Find the session of an expert that is up and has the fewest calls."""
        numbers = [n for n in sorted(view.up) if view.is_open(n) and view.opened[n].expert == expert]
        return min(numbers, key=lambda n: len(view.held[n]), default=None)


def in_order_of_length(graph: CallGraph, profiles: Mapping[NodeName, Profile]) -> CallGraph:
    """Return the graph with prompts in the order of predicted lengths, the shortest first."""
    if graph.prefill_order is None:
        return graph
    means = {
        node: {entry.expert: entry.lengths.mean for entry in profile.entries} for node, profile in profiles.items()
    }
    return replace(graph, prefill_order=PrefillOrder(mean_output_tokens=means))
