"""What an early exit decides, and on what.

NOTE: the idea. Agents that somebody reads end one after the other. After each a rule looks at those that have ended: it
may stop there, so that who reads them reads these only, or accept what they agree on, so that nobody reads them at all.
In the order of their slots an agent counts once those before it have ended: what becomes of a question then follows
from what its calls say and not from the schedule. In the order in which they finish more calls are saved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import eq
from typing import NamedTuple, Protocol

from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import CallKey, Question
from mosaic.pipelines.gates.gate import Decision, PartialBallot, Vote, make_ballot


class Order(StrEnum):
    """When an agent that has ended counts."""

    SLOT = "slot"
    """Once those of lower slots have."""
    FINISH = "finish"
    """At once."""


class Scope(StrEnum):
    """Whose agreement a rule looks at."""

    NODE = "node"
    """Those that a node reads, at each node that reads others."""
    QUESTION = "question"
    """All of the first layer, for the question as a whole."""


class Agent(NamedTuple):
    """One of those that somebody reads."""

    expert: str
    key: CallKey | None
    """None: not known yet, or nobody was asked, as the prompt would not fit."""
    has_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Those that somebody reads, as far as they have ended."""

    question: Question
    agents: tuple[Agent, ...]
    """By slot. One that was not asked, as those before it agreed, stands here as one of them."""
    order: tuple[int, ...]
    """Places of those that count, in the order in which they do."""
    done: Inputs
    same: Callable[[str, str], bool] | None
    """How answers compare; None: they cannot."""

    def record(self, place: int) -> CallRecord | None:
        """Give what an agent that has ended left; None: nothing that can be read."""
        key = self.agents[place].key
        record = None if key is None else self.done.get(key)
        return record if record is not None and record.status is CallStatus.FINISHED else None

    def ballot(self) -> PartialBallot:
        """Collect the votes of those that count.

        NOTE: answers that compare by more than their text are grouped from the lowest slot on, as in
        `mosaic.pipelines.quorum.partial_ballot`: a vote behind a missing one counts as missing too.
        """
        counted = set(self.order)
        missing = [place for place in range(len(self.agents)) if place not in counted]
        if missing and self.same is not eq:
            missing = list(range(missing[0], len(self.agents)))
        votes = [
            Vote(agent.expert, None if place in missing or record is None else record.answer)
            for place, agent in enumerate(self.agents)
            for record in (self.record(place),)
        ]
        return PartialBallot(ballot=make_ballot(self.question, votes, self.same), missing=tuple(missing))


class Verdict(NamedTuple):
    """That no other agent is needed."""

    read: tuple[int, ...]
    """Places of those that are read."""
    decision: Decision | None = None
    """Accepted: its answer stands, and nobody reads them. None: they are read."""


class Exit(Protocol):
    """Says when the agents that have ended are enough."""

    @property
    def name(self) -> str:
        """Its name in summaries and figures."""

    @property
    def order(self) -> Order:
        """When an agent counts."""

    @property
    def scope(self) -> Scope:
        """Whose agreement it looks at."""

    @property
    def reads_confidence(self) -> bool:
        """Whether it needs to know how probable the tokens of each response were."""

    def load(self) -> None:
        """Load what it judges by, before the run's clock starts."""

    def judge(self, meeting: Meeting) -> Verdict | None:
        """Find the first agents that are enough; None: the others are needed.

        The same whoever of the others ends or is cancelled later: a verdict stands.
        """

    def notes(self) -> Sequence[str]:
        """Say what a reader should know of the rule itself."""


def ended_in(order: Order, agents: Sequence[Agent], done: Inputs) -> tuple[int, ...]:
    """List the places of the agents that count, in their order; who was cancelled never does."""
    if order is Order.SLOT:
        first_missing = next((place for place, agent in enumerate(agents) if not agent.has_ended), len(agents))
        ended = list(range(first_missing))
    else:
        arrived = {key: number for number, key in enumerate(done)}
        ended = [place for place, agent in enumerate(agents) if agent.has_ended]
        ended.sort(key=lambda place: -1 if (key := agents[place].key) is None else arrived[key])
    return tuple(place for place in ended if not _is_cancelled(agents[place], done))


def _is_cancelled(agent: Agent, done: Inputs) -> bool:
    return agent.key is not None and done[agent.key].status is CallStatus.CANCELLED
