"""Rules: they say when the answers of a question so far are enough. Gates and early exits are rules.

NOTE: the idea. The agents that a node reads end one after the other. A rule looks at their votes. It may accept what
they agree on, so that the node need not read them, or decide that the votes so far are enough to read. Rules differ in
their measure of confidence and in its threshold. The scope of a rule says where it decides, and what follows:

A gate decides where a node is to run only if the gate does not accept its inputs. A node that is left out gives nothing
to its own readers. Calls that are no longer needed run to their end unless a quorum cancels them.

An early exit decides at every node that reads others, or once for the whole question. The accepted response takes the
place of a node that is left out, and unneeded calls are cancelled. In the order of their slots, an agent counts once
those before it have ended. The outcome of a question then depends on its responses and not on the schedule. In the
order in which they finish, more calls are saved.

References
----------
MOSAIC, arXiv 2606.03014, equation 11 and algorithm 1.
EMS, arXiv 2604.02863, has the early decision for a vote that nothing follows.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import Annotated, Any, ClassVar, NamedTuple

from mosaic.core.checks import Limit, check_fields, require_number
from mosaic.pipelines.rules.ballot import Ballot, Decision, Winner, decide_at, plurality

TAU_TOLERANCE = 1e-3
"""How far below tau a fraction may lie: 2/3 written as 0.6667 or 0.667 in a file still means 2/3."""

MAX_TRIED = 1000
"""Ways in which pending votes may come out that are tried."""


class Scope(StrEnum):
    """Where a rule decides."""

    GATE = "gate"
    """At the nodes that are to run only where it does not accept what they read."""
    NODE = "node"
    """An early exit: at each node that reads others."""
    QUESTION = "question"
    """An early exit: once, of the whole first layer."""


class Order(StrEnum):
    """When the vote of an agent that has ended counts."""

    SLOT = "slot"
    """Once those of lower slots have."""
    FINISH = "finish"
    """At once."""


class Promised(NamedTuple):
    """A loss of accuracy against asking all experts that is promised, and the calibration answers that it rests on."""

    calibration: str
    accepted_loss_frac: float
    risk_frac: float
    fit_frac: float
    question_ids: frozenset[str] = frozenset()
    """Of all calibration questions: a batch that shares one is no new draw, and nothing is promised for it."""
    is_given: bool = True
    """False: the calibration questions could promise nothing, and nothing is skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Accepts an answer whose confidence reaches a threshold. By itself it has none, and accepts nothing."""

    name: str
    """In summaries and figures."""
    scope: Scope = Scope.GATE
    order: Order = Order.SLOT
    """Of an early exit."""

    skips_nothing: ClassVar[bool] = False
    """It accepts nothing, whatever it is calibrated to."""
    reads_confidence: ClassVar[bool] = False
    """It needs to know how probable the tokens of each response were."""

    def __post_init__(self) -> None:
        check_fields(self, "gate." if self.scope == Scope.GATE else "exit.")

    @property
    def is_exit(self) -> bool:
        """Whether it is an early exit, and not a gate."""
        return self.scope is not Scope.GATE

    @property
    def key(self) -> str:
        """Give the group of the configuration that it comes from."""
        return "exit" if self.is_exit else "gate"

    @property
    def threshold(self) -> float | None:
        """Give the confidence from which on an answer is accepted; None: none is."""
        return None

    @property
    def decides_early(self) -> bool:
        """Whether it can ever accept an answer before all votes are there."""
        return True

    def load(self) -> None:
        """Load what it judges by, before the run's clock starts."""

    def winner(self, ballot: Ballot) -> Winner:
        """Find the answer that would be accepted, and its confidence: by default the plurality's share."""
        return plurality(ballot)

    def decide(self, ballot: Ballot) -> Decision:
        """Decide on votes of which none is pending."""
        return decide_at(ballot, self.winner(ballot), self.threshold)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        """Decide where the pending votes cannot change it, or its answer; None: they may, or are to be waited for.

        An accepted answer's confidence is then what the pending votes leave at least. A decision stands, whichever of
        the others end or are cancelled later.
        """
        return decided_by_plurality(ballot, self.threshold)

    def promise(self) -> Promised | None:
        """Give the loss that it promises; None: it promises nothing."""
        return None

    def calibration_path(self) -> str | None:
        """Give the calibration answers that it has learned from; None: it learns nothing."""
        promised = self.promise()
        return None if promised is None else promised.calibration

    def learned_without(self, question_ids: Set[str]) -> "Rule":
        """Return the rule as it is without some calibration questions: those that certify must not teach it.

        A rule that learns from calibration answers overrides this. By default the rule learns nothing.
        """
        return self

    def thresholds(self, num_votes: set[int]) -> tuple[float | None, ...]:
        """List the thresholds that may be chosen together with budgets, for questions of so many votes."""
        return (self.threshold,)

    def at(self, threshold: float | None) -> "Rule":
        """Return the rule at one of these thresholds."""
        return self

    def notes(self) -> Sequence[str]:
        """Say what a reader should know of the rule: what it promises, or why it accepts nothing."""
        return ()

    def report(self) -> Mapping[str, Any] | None:
        """List the numbers behind its promise, for summary.json; None: there are none."""
        return None


def decided_by_plurality(ballot: Ballot, threshold: float | None) -> Decision | None:
    """Decide where the plurality is accepted with one answer, however the pending votes come out.

    NOTE: nothing is worse for an answer than all pending votes agreeing on one other, the strongest or a new one.
    What they add to the answer itself only helps it.
    """
    decision = decide_at(ballot, plurality(ballot), threshold)
    if not decision.skip:
        return None
    if not ballot.pending:
        return decision
    places: dict[str, list[int]] = {}
    for place, vote in enumerate(ballot.votes):
        if vote.answer is not None:
            places.setdefault(vote.answer, []).append(place)
    assert decision.answer is not None, "it is accepted"
    mine = places.pop(decision.answer)
    rivals = [sorted((*others, *ballot.pending)) for others in (*places.values(), ())]
    return decision if all((len(rival), -rival[0]) < (len(mine), -mine[0]) for rival in rivals) else None


def decided_by_trying(ballot: Ballot, decide: Callable[[Ballot], Decision]) -> Decision | None:
    """Tell the same for any way to decide, by trying all ways in which the pending votes may come out.

    Where they are too many to try nothing is decided: the question waits for another vote.
    """
    pending, decision = ballot.pending, decide(ballot)
    if not decision.skip:
        return None
    seen = dict.fromkeys(vote.answer for vote in ballot.votes if vote.answer is not None)
    options = [None, *seen, *(f"(other {number})" for number in range(len(pending)))]
    if len(options) ** len(pending) > MAX_TRIED:
        return None
    for said in product(options, repeat=len(pending)):
        votes = list(ballot.votes)
        for place, answer in zip(pending, said, strict=True):
            votes[place] = votes[place]._replace(answer=answer)
        other = decide(replace(ballot, votes=tuple(votes)))
        if not other.skip or other.answer != decision.answer:
            return None
    return decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Never(Rule):
    """Accepts nothing; still reports what the slots agreed on."""

    name: str = "never"
    skips_nothing: ClassVar[bool] = True

    @property
    def decides_early(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority(Rule):
    """Accepts the plurality where its share of the slots is at least tau: algorithm 1 of the paper.

    tau = 1 accepts what all slots agree on: the paper's conservative point.
    """

    tau: Annotated[float, Limit(above=0, at_most=1)] = 2 / 3
    """0 (excluded) to 1, of an early exit 0.5 (excluded) to 1; compared with a tolerance of 0.001, so that 0.6667 means
    2/3."""
    name: str = "majority"

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        if self.is_exit:
            require_number(self.tau, "exit.tau", above=0.5)

    @property
    def threshold(self) -> float:
        return self.tau - TAU_TOLERANCE

    @property
    def decides_early(self) -> bool:
        return self.tau < 1
