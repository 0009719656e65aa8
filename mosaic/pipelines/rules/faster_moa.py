"""The rule of Faster-MoA: after each response, a random draw decides whether the remaining agents are cancelled.

NOTE: after each agent i that has ended, with l, j, k over those that have:

    C_l = exp(mean log p of the tokens of l)                         its confidence
    C   = sqrt(mean of C_l^2)
    P   = sum of C_j C_k Sim(j, k) / sum of C_j C_k, over pairs j <= k
    B   = 1 - |P - tau| / tau,  tau = 0.7
    Q   = sqrt(C B)                                                  the others are cancelled with this probability

The probability depends on confidence and similarity. This is one reading of the paper. As printed, pairs j = k count,
whose Sim is 1. Q is the root, as in the paper's prose, not the power tau of its algorithm. results/exits/faster_moa.md
compares the readings. Sim(j, k) is the cosine, under the Frobenius product, of U_j and U_k. U is T'T scaled to a
correlation matrix, with T the embeddings of a response's tokens, shape (num_tokens, embedding_size).

References
----------
Faster-MoA, arXiv 2512.18126.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from itertools import combinations
from math import sqrt
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast0, Limit, require
from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from mosaic.pipelines.rules.ballot import Ballot, Decision, decide_at, plurality
from mosaic.pipelines.rules.rule import Order, Rule, Scope

Floats: TypeAlias = NDArray[np.floating[Any]]
Embed: TypeAlias = Callable[[str], Floats]
"""Returns the embeddings of a text's tokens, T, shape (num_tokens, embedding_size)."""


class Similarity(StrEnum):
    """How two responses are compared."""

    ANSWERS = "answers"
    """1 for equal answers, else 0: a simulation knows no more, and no embedding is needed."""
    EMBEDDINGS = "embeddings"
    """As published, with a model of the pool instead of the paper's embedding model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterMoa(Rule):
    """Cancels by the published rule; the next node reads the agents that count by then. It never accepts an answer."""

    seed: AtLeast0
    """The run's seed: the draws are hashes of it and the keys of the calls."""
    tau: Annotated[float, Limit(above=0, at_most=1)] = 0.7
    similarity: Similarity = Similarity.ANSWERS
    embed: Embed | None = None
    """Given with similarity=embeddings."""
    name: str = "faster_moa"
    scope: Scope = Scope.NODE
    order: Order = Order.FINISH

    reads_confidence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        require(self.scope is Scope.NODE, "exit.scope", "node", self.scope)
        given = self.embed is not None
        needed = self.similarity is Similarity.EMBEDDINGS
        require(given == needed, "exit.embed", f"{'given' if needed else 'null'} with {self.similarity}", self.embed)

    def load(self) -> None:
        """Embed a word, so that the embedding model is loaded before the first texts arrive."""
        if self.embed is not None:
            self.embed("ready")

    def decide(self, ballot: Ballot) -> Decision:
        return self.decided_early(ballot) or decide_at(ballot, plurality(ballot), None)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        """Draw after each agent that has ended, except the last: after it, no agent is left to cancel.

        Raises
        ------
        ValueError
            If the probabilities of a response's tokens are not known.
        """
        confidences: list[float] = []
        finished: list[int] = []
        compare = self._comparison(ballot)
        for number, place in enumerate(ballot.order[: len(ballot.votes) - 1], start=1):
            record = ballot.records[place]
            if record is None:
                continue  # a call that failed has no answer
            finished.append(place)
            confidences.append(_confidence_of(record))
            drawn = draw(self.seed, record.key)
            least, most = probability_range(confidences, tau=self.tau)
            if least <= drawn < most:  # otherwise the decision needs no embedding
                similar = [[compare(other, one) for other in finished[:k]] for k, one in enumerate(finished)]
                least = exit_probability(confidences, similar, tau=self.tau)
            if drawn < least:
                return _decision_of(ballot, ballot.order[:number])
        return None

    def _comparison(self, ballot: Ballot) -> Callable[[int, int], float]:
        """Return the similarity of two agents; texts are embedded only when they are compared."""
        if self.embed is None:
            answers = [vote.answer for vote in ballot.votes]
            return lambda one, other: float(answers[one] is not None and answers[one] == answers[other])
        embed = self.embed

        @cache
        def correlation(place: int) -> Floats:
            record = ballot.records[place]
            assert record is not None, "it has finished"
            return token_correlation(embed(_text_of(record)))

        return lambda one, other: frobenius_cosine(correlation(one), correlation(other))

    def notes(self) -> Sequence[str]:
        by = "same answer" if self.embed is None else "token embeddings"
        return (f"Faster-MoA's rule: tau {self.tau:g}, Sim by {by}",)


def _decision_of(ballot: Ballot, read: tuple[int, ...]) -> Decision:
    """Stop at the votes that are read; later votes decide nothing."""
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
    Two agents of equal confidence have P = (2 + Sim) / 3, so the rule as printed rewards disagreement:

    >>> [round(exit_probability([0.9, 0.9], [[], [sim]]), 3) for sim in (0.0, 0.1, 0.5, 1.0)]
    [0.926, 0.949, 0.854, 0.717]
    """
    mean_similarity = _mean_similarity(confidences, lambda j, k: similar[k][j])
    return 0.0 if mean_similarity is None else _probability(confidences, mean_similarity, tau)


def probability_range(confidences: Sequence[float], *, tau: float = 0.7) -> tuple[float, float]:
    """Bound Q for any similarity: Sim lies between 0 and 1, and Q falls on both sides of P = tau.

    Examples
    --------
    >>> [round(odds, 3) for odds in probability_range([0.9, 0.9])]
    [0.717, 0.949]
    """
    unlike = _mean_similarity(confidences, lambda j, k: 0.0)
    alike = _mean_similarity(confidences, lambda j, k: 1.0)
    if unlike is None or alike is None:
        return 0.0, 0.0
    odds = [_probability(confidences, one, tau) for one in (unlike, min(max(tau, unlike), alike), alike)]
    return min(odds), max(odds)


def _mean_similarity(confidences: Sequence[float], similarity: Callable[[int, int], float]) -> float | None:
    """Compute P; None: all confidences are 0."""
    own = add_in_order(confidence**2 for confidence in confidences)
    pairs = [(confidences[j] * confidences[k], similarity(j, k)) for j, k in combinations(range(len(confidences)), 2)]
    total = own + add_in_order(weight for weight, _ in pairs)
    return (own + add_in_order(weight * sim for weight, sim in pairs)) / total if total > 0 else None


def _probability(confidences: Sequence[float], mean_similarity: float, tau: float) -> float:
    confidence = sqrt(add_in_order(one**2 for one in confidences) / len(confidences))
    balance = 1 - abs(mean_similarity - tau) / tau
    return min(1.0, sqrt(max(0.0, confidence * balance)))


def draw(seed: int, key: CallKey) -> float:
    """Draw a number in [0, 1) after a call: it depends only on the seed and the call's key.

    Examples
    --------
    >>> draw(0, CallKey("q", "layer_1", 0)) == draw(0, CallKey("q", "layer_1", 1))
    False
    """
    question, node, slot = key
    digest = blake2b(f"{seed}|early exit|{question}|{node}|{slot}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def token_correlation(embeddings: Floats) -> Floats:
    """Scale T'T to a correlation matrix: U_ab = (T'T)_ab / sqrt((T'T)_aa (T'T)_bb).

    Parameters
    ----------
    embeddings
        T, shape (num_tokens, embedding_size).

    Examples
    --------
    >>> token_correlation(np.array([[1.0, 2.0], [3.0, 4.0]])).round(3).tolist()
    [[1.0, 0.99], [0.99, 1.0]]
    """
    gram = embeddings.T @ embeddings
    size = np.sqrt(np.diag(gram))
    scale: Floats = np.where(size > 0, size, 1.0)
    correlation: Floats = gram / np.outer(scale, scale)
    return correlation


def frobenius_cosine(one: Floats, other: Floats) -> float:
    """Compute the cosine of two matrices under the Frobenius product, -1 to 1.

    Examples
    --------
    >>> one, other = np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> round(frobenius_cosine(one, one), 3), frobenius_cosine(one, other)
    (1.0, 0.0)
    """
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return 0.0 if size == 0 else float(np.clip(np.vdot(one, other) / size, -1.0, 1.0))


def _confidence_of(record: CallRecord) -> float:
    if record.confidence is None:
        raise ValueError(
            f"exit=faster_moa: the confidence of {record.key.question}, {record.key.node}, slot {record.key.slot} must "
            "be known, got None: its engine did not report the probabilities of its tokens"
        )
    return record.confidence


def _text_of(record: CallRecord) -> str:
    if record.response is None or (text := record.response.text) is None:
        raise ValueError(
            f"exit.similarity must be answers where calls have no texts, got embeddings ({record.key.question})"
        )
    return text
