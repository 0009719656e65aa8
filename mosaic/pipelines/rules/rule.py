"""Rules: they decide when the answers of a question so far are enough. Gates and early exits are rules.

NOTE: the idea. The agents that a node reads end one after the other. A rule checks their votes. It may accept the
answer that they agree on, so that the node need not read them. Or it may decide that the votes so far are enough to
read. Rules differ in their measure of confidence and in its threshold. The scope of a rule is where it decides, with
these effects:

A gate decides at nodes that run only if the gate does not accept their inputs. A node that is left out gives nothing to
its own readers. Calls that are no longer needed run to their end unless a quorum cancels them.

An early exit decides at every node that reads others, or once for the whole question. The accepted response replaces a
node that is left out, and unneeded calls are cancelled. In the order of slots, an agent counts once those before it
have ended. The outcome of a question then depends on its responses and not on the schedule. In the order of finishing,
more calls are saved.

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
"""Most outcomes of pending votes that are tried."""


class Scope(StrEnum):
    """Where a rule decides."""

    GATE = "gate"
    """At the nodes that run only if it does not accept their inputs."""
    NODE = "node"
    """An early exit: at each node that reads others."""
    QUESTION = "question"
    """An early exit: once, on the whole first layer."""


class Order(StrEnum):
    """When the vote of an ended agent counts."""

    SLOT = "slot"
    """Once the agents of lower slots have ended."""
    FINISH = "finish"
    """At once."""


class Promised(NamedTuple):
    """A promised limit on the loss of accuracy against aggregating every question, with its calibration answers."""

    calibration: str
    accepted_loss_frac: float
    risk_frac: float
    fit_frac: float
    question_ids: frozenset[str] = frozenset()
    """Ids of all calibration questions: a batch that shares one is no new draw, and nothing is promised for it."""
    is_given: bool = True
    """False: the calibration questions could promise nothing, and nothing is skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Accepts an answer whose confidence reaches a threshold. The base class has none, and accepts nothing."""

    name: str
    """In summaries and figures."""
    scope: Scope = Scope.GATE
    order: Order = Order.SLOT
    """For an early exit."""

    skips_nothing: ClassVar[bool] = False
    """It never accepts an answer, with any calibration."""
    reads_confidence: ClassVar[bool] = False
    """It needs the probabilities of each response's tokens."""

    def __post_init__(self) -> None:
        check_fields(self, "gate." if self.scope == Scope.GATE else "exit.")

    @property
    def is_exit(self) -> bool:
        """Whether it is an early exit, and not a gate."""
        return self.scope is not Scope.GATE

    @property
    def key(self) -> str:
        """Its group of the configuration."""
        return "exit" if self.is_exit else "gate"

    @property
    def threshold(self) -> float | None:
        """The lowest confidence at which an answer is accepted; None: no answer is."""
        return None

    @property
    def decides_early(self) -> bool:
        """Whether it can accept an answer before all votes have arrived."""
        return True

    def load(self) -> None:
        """Load what it needs, before the run's clock starts."""

    def winner(self, ballot: Ballot) -> Winner:
        """Find the answer that would be accepted, and its confidence: by default the plurality's share."""
        return plurality(ballot)

    def decide(self, ballot: Ballot) -> Decision:
        """Decide on votes of which none is pending."""
        return decide_at(ballot, self.winner(ballot), self.threshold)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        """Decide if the pending votes cannot change the decision or its answer; None: they may, or must be waited for.

        The confidence of an accepted answer is then the lowest that the pending votes leave. A decision is final,
        whichever of the other calls end or are cancelled later.
        """
        return decided_by_plurality(ballot, self.threshold)

    def promise(self) -> Promised | None:
        """Return the promised loss; None: it promises nothing."""
        return None

    def calibration_path(self) -> str | None:
        """Return the calibration answers that it was trained on; None: none."""
        promised = self.promise()
        return None if promised is None else promised.calibration

    def learned_without(self, question_ids: Set[str]) -> "Rule":
        """Return the rule without some calibration questions: those that certify must not be used for training.

        A rule that learns from calibration answers overrides this. By default the rule learns nothing.
        """
        return self

    def thresholds(self, num_votes: set[int]) -> tuple[float | None, ...]:
        """List the thresholds that may be chosen together with budgets, for questions with these numbers of votes."""
        return (self.threshold,)

    def at(self, threshold: float | None) -> "Rule":
        """Return the rule at one of these thresholds."""
        return self

    def notes(self) -> Sequence[str]:
        """Describe the rule for a reader: its promise, or why it accepts nothing."""
        return ()

    def report(self) -> Mapping[str, Any] | None:
        """List the numbers behind its promise, for summary.json; None: there are none."""
        return None


def decided_by_plurality(ballot: Ballot, threshold: float | None) -> Decision | None:
    """Decide if the plurality is accepted with one answer for every outcome of the pending votes.

    NOTE: the worst case for an answer is that all pending votes agree on one other answer, the strongest or a new one.
    Votes for the answer itself only help it.
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
    """Decide likewise for any decision function, by trying all outcomes of the pending votes.

    If there are too many outcomes, nothing is decided: the question waits for another vote.
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
    """Accepts nothing; still reports the slots' plurality."""

    name: str = "never"
    skips_nothing: ClassVar[bool] = True

    @property
    def decides_early(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority(Rule):
    """Accepts the plurality if its share of the slots is at least tau: algorithm 1 of the paper.

    tau = 1 accepts only unanimous answers: the paper's conservative point.
    """

    tau: Annotated[float, Limit(above=0, at_most=1)] = 2 / 3
    """0 (excluded) to 1, for an early exit 0.5 (excluded) to 1; compared with a tolerance of 0.001.

    So 0.6667 means 2/3.
    """
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
