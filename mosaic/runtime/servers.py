"""A run on servers: experts are where their servers are, so nothing is placed, measured or planned before it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mosaic.core.commands import Command, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Event, Finished, Lost, Started
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.results import SERVED
from mosaic.core.workload import Call, ExpertName, NodeName
from mosaic.runtime.controller import View
from mosaic.runtime.layers import Questions


def plan_of_servers(questions: Questions, expert_by_server: Mapping[int, ExpertName]) -> Plan:
    """Give every server of an expert that may be called a session, without calls or predicted times."""
    nodes: dict[ExpertName, NodeName] = {call.expert: call.key.node for call in questions.first_calls}
    for node in questions.graph.upper_nodes:
        for expert in node.experts:
            nodes.setdefault(expert.name, node.name)
    used = [(worker, expert) for worker, expert in expert_by_server.items() if expert in nodes]
    sessions = [
        Session(id=number, expert=expert, node=nodes[expert], workers=(worker,))
        for number, (worker, expert) in enumerate(used)
    ]
    return replace(unpriced_plan(sessions, num_workers=len(expert_by_server)), scheduler="servers")


class Servers:
    """Opens a session on every server, and submits each call as soon as its question needs it.

    Calls go to the queue of their expert: whichever of its servers has room takes the next. Sessions are closed by the
    run loop when no call is left.

    Parameters
    ----------
    questions
        The batch on its way.
    plan
        A session a server.
    home
        As in ``Flow``.
    """

    reacts = True

    def __init__(
        self,
        questions: Questions,
        plan: Plan,
        home: Callable[[Call, View], int | None] = lambda call, view: None,
    ) -> None:
        self._home = home
        self._questions = questions
        self._plan = plan

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin with the first layer, and go on with every question for itself.

        Raises
        ------
        BackendError
            If all servers are lost before any has served a call.
        """
        if isinstance(event, Started):
            return [
                *(Open(session) for session in self._plan.sessions),
                *(Submit(call, call.expert) for call in self._questions.first_calls),
            ]
        if isinstance(event, Finished):
            self._questions.note(event.record)
            needed = self._questions.needed(event.record.key.question)
            homes = [(call, self._home(call, view)) for call in needed if call.key not in view.calls]
            return [Submit(call, call.expert if home is None else home) for call, home in homes]
        if isinstance(event, Lost):
            self._check(view)
        return ()

    def _check(self, view: View) -> None:
        workers = [worker for session in self._plan.sessions for worker in session.workers]
        has_served = any(record.status in SERVED for record in view.records.values())
        if not has_served and all(worker in view.lost for worker in workers):
            causes = "; ".join(dict.fromkeys(view.lost[worker] for worker in workers))
            raise BackendError(f"no server serves any call: {causes}")
