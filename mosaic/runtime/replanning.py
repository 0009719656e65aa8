"""Plans the unended calls of a lost worker anew, at once, on the other workers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mosaic.core.commands import Command
from mosaic.core.errors import BackendError, InfeasibleError
from mosaic.core.events import Event, Lost
from mosaic.core.plan import Plan
from mosaic.core.view import View
from mosaic.core.workload import Call
from mosaic.runtime.static_plan import plan_commands


@dataclass(eq=False)
class Replanning:
    """Replies to the loss of workers with a new plan for the unended calls of their sessions."""

    plan: Callable[[Sequence[Call], Mapping[int, str]], Plan]
    """Plans calls without the lost workers."""
    on_plan: Callable[[Plan, Mapping[int, str]], None] = lambda plan, lost: None
    """Receives each new plan, with the workers lost so far, before it runs."""
    reacts: ClassVar[bool] = True

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reply to the loss of a worker.

        Raises
        ------
        BackendError
            If no plan serves the calls that are left, with the causes of the losses.
        """
        if not isinstance(event, Lost) or event.num_more:
            return ()  # no plan may use the others that are lost with it
        left = view.left_by(view.lost)
        if not left:
            return ()
        causes = "; ".join(f"worker {worker}: {cause}" for worker, cause in sorted(view.lost.items()))
        if len(view.lost) == view.num_workers:
            raise BackendError(f"all workers are lost and {len(view.running)} calls are left ({causes})")
        return list(self._again(left, view, causes))

    def _again(self, left: Sequence[Call], view: View, causes: str) -> Iterator[Command]:
        number = view.next_session()
        for node in dict.fromkeys(call.key.node for call in left):  # each node has its own placement
            calls = [call for call in left if call.key.node == node]
            try:
                plan = self.plan(calls, view.lost)
            except InfeasibleError as error:
                raise BackendError(
                    f"{len(left)} calls are left that no plan serves without the workers that are lost "
                    f"({causes}): {error}"
                ) from error
            self.on_plan(plan, view.lost)
            yield from plan_commands(plan, calls, number)
            number += 1 + max(session.id for session in plan.sessions)


def describe_new_plan(plan: Plan, lost: Mapping[int, str]) -> str:
    """Describe in a line the loss, or the contradicted plan, and the new plan."""
    named = ", ".join(f"worker {worker} ({cause})" for worker, cause in sorted(lost.items()))
    num_calls = sum(len(session.shard) for session in plan.sessions)
    if not lost:
        return f"lengths contradict the plan: {num_calls:,} calls planned anew in {len(plan.sessions)} sessions"
    return f"lost {named}: {num_calls:,} calls planned anew in {len(plan.sessions)} sessions on the other workers"
