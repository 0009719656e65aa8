"""Runs a batch on servers: each server has its expert, so no placement, measurement or plan is needed before."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mosaic.core.commands import Command, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Event, Lost
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.results import SERVED
from mosaic.core.view import View
from mosaic.core.workload import ExpertName, NodeName
from mosaic.pipelines.questions import Questions
from mosaic.runtime.no_barrier import SubmitWhenReady

SERVERS = "servers"
"""The scheduler name in a plan of servers."""


def plan_of_servers(questions: Questions, expert_by_server: Mapping[int, ExpertName]) -> Plan:
    """Give each server whose expert may be called a session, without calls or predicted times."""
    nodes: dict[ExpertName, NodeName] = {call.expert: call.key.node for call in questions.first_calls}
    for node in questions.graph.upper_nodes:
        for expert in node.experts:
            nodes.setdefault(expert.name, node.name)
    used = [(worker, expert) for worker, expert in expert_by_server.items() if expert in nodes]
    sessions = [
        Session(id=number, expert=expert, node=nodes[expert], workers=(worker,))
        for number, (worker, expert) in enumerate(used)
    ]
    return replace(unpriced_plan(sessions, num_workers=len(expert_by_server)), scheduler=SERVERS)


@dataclass(kw_only=True)
class Servers(SubmitWhenReady):
    """Opens a session on every server; calls join the queue of their expert, from which its servers take them.

    Sessions are closed by the run loop when no call is left.
    """

    plan: Plan
    """One session per server."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Submit the ready calls.

        Raises
        ------
        BackendError
            If all servers are lost before any has served a call.
        """
        if isinstance(event, Lost):
            self._check(view)
        return super().on(event, view)

    def _begin(self, view: View) -> Iterable[Command]:
        sessions, first = self.plan.sessions, self.questions.first_calls
        return [*map(Open, sessions), *(Submit(call, call.expert) for call in first)]

    def _check(self, view: View) -> None:
        workers = [worker for session in self.plan.sessions for worker in session.workers]
        has_served = any(record.status in SERVED for record in view.records.values())
        if not has_served and all(worker in view.lost for worker in workers):
            causes = "; ".join(dict.fromkeys(view.lost[worker] for worker in workers))
            raise BackendError(f"no server serves any call: {causes}")
