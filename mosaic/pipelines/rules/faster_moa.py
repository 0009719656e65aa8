"""The rule that Faster-MoA published: agents are cancelled by a draw whose odds follow from confidence and similarity.

NOTE: after each agent i that has ended, with l, j, k over those that have:

    C_l = exp(mean log p of the tokens of l)                         its confidence
    C   = sqrt(mean of C_l^2)
    P   = sum of C_j C_k Sim(j, k) / sum of C_j C_k, over pairs j <= k
    B   = 1 - |P - tau| / tau,  tau = 0.7
    Q   = sqrt(C B)                                                  the others are cancelled with this probability

This is one reading of the paper: pairs j = k, whose Sim is 1, count, as printed, and Q is the root of its prose, not
the power tau of its algorithm. Sim(j, k) is 1 where j and k give the same answer, else 0; the paper compares embeddings
of their tokens. results/exits/faster_moa.md compares the readings.

References
----------
Faster-MoA, arXiv 2512.18126.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from math import sqrt
from typing import Annotated, ClassVar

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast0, Limit, require
from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from mosaic.pipelines.rules.ballot import Ballot, Decision, decide_at, plurality
from mosaic.pipelines.rules.rule import Order, Rule, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterMoa(Rule):
    """Cancels by the published rule; who reads the agents reads those that count by then. It accepts nothing."""

    seed: AtLeast0
    """The run's: the draws are hashed from it and the keys of the calls."""
    tau: Annotated[float, Limit(above=0, at_most=1)] = 0.7
    name: str = "faster_moa"
    scope: Scope = Scope.NODE
    order: Order = Order.FINISH

    reads_confidence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        require(self.scope is Scope.NODE, "exit.scope", "node", self.scope)

    def decide(self, ballot: Ballot) -> Decision:
        return self.decided_early(ballot) or decide_at(ballot, plurality(ballot), None)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        """Draw after each agent that has ended, but for the last, after which no agent is left to cancel.

        Raises
        ------
        ValueError
            If it is not known how probable a response's tokens were.
        """
        confidences: list[float] = []
        answers: list[str | None] = []
        for number, place in enumerate(ballot.order[: len(ballot.votes) - 1], start=1):
            record = ballot.records[place]
            if record is None:
                continue  # a call that failed has no answer
            answers.append(ballot.votes[place].answer)
            confidences.append(_confidence_of(record))
            similar = [
                [float(one is not None and one == other) for other in answers[:k]] for k, one in enumerate(answers)
            ]
            if draw(self.seed, record.key) < exit_probability(confidences, similar, tau=self.tau):
                return _decision_of(ballot, ballot.order[:number])
        return None

    def notes(self) -> Sequence[str]:
        return (f"Faster-MoA's rule: tau {self.tau:g}, Sim by same answer",)


def _decision_of(ballot: Ballot, read: tuple[int, ...]) -> Decision:
    """Stop at the votes that are read; what the others say, if they still end, decides nothing."""
    of_read = ballot.without(*(place for place in range(len(ballot.votes)) if place not in read))
    return decide_at(of_read, plurality(of_read), None)._replace(read=read)


def exit_probability(confidences: Sequence[float], similar: Sequence[Sequence[float]], *, tau: float = 0.7) -> float:
    """Compute Q.

    Parameters
    ----------
    confidences
        C_l of the agents that have ended, 0 to 1.
    similar
        Row k has Sim(k, j) for all j < k.
    tau
        As in ``FasterMoa``.

    Returns
    -------
    float
        0 to 1; 0 where all confidences are 0.

    Examples
    --------
    Two agents of equal confidence have P = (2 + Sim) / 3, so that the rule as printed rewards disagreement:

    >>> [round(exit_probability([0.9, 0.9], [[], [sim]]), 3) for sim in (0.0, 0.1, 0.5, 1.0)]
    [0.926, 0.949, 0.854, 0.717]
    """
    own = add_in_order(confidence**2 for confidence in confidences)
    pairs = [(confidences[j] * confidences[k], similar[k][j]) for j, k in combinations(range(len(confidences)), 2)]
    total = own + add_in_order(weight for weight, _ in pairs)
    if total <= 0:
        return 0.0
    mean_similarity = (own + add_in_order(weight * sim for weight, sim in pairs)) / total
    balance = 1 - abs(mean_similarity - tau) / tau
    return min(1.0, sqrt(max(0.0, sqrt(own / len(confidences)) * balance)))


def draw(seed: int, key: CallKey) -> float:
    """Draw a number in [0, 1) behind a call: it depends on nothing but the seed and the call's key.

    Examples
    --------
    >>> draw(0, CallKey("q", "layer_1", 0)) == draw(0, CallKey("q", "layer_1", 1))
    False
    """
    question, node, slot = key
    digest = blake2b(f"{seed}|early exit|{question}|{node}|{slot}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _confidence_of(record: CallRecord) -> float:
    if record.confidence is None:
        raise ValueError(
            f"exit=faster_moa: the confidence of {record.key.question}, {record.key.node}, slot {record.key.slot} must "
            "be known, got None: its engine did not tell how probable its tokens were"
        )
    return record.confidence
