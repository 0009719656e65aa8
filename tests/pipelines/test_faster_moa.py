"""Faster-MoA's rule: its formula against one written from the paper, and what it draws."""

from math import exp, log, prod, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mosaic.core.results import Response
from mosaic.core.workload import PROPOSE, CallKey
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.faster_moa import (
    FasterMoa,
    draw,
    exit_probability,
    frobenius_cosine,
    probability_range,
    token_correlation,
)
from mosaic.pipelines.walk import QuestionState
from tests.answered_questions import answered, make_question

UNIT = st.floats(0.01, 1.0)


def published(token_logs: list[list[float]], sims: np.ndarray, tau: float) -> float:
    """Q from the tokens' log-probabilities and the whole matrix of similarities, as the paper writes it."""
    each = [prod(exp(one) for one in logs) ** (1 / len(logs)) for logs in token_logs]
    certainty = sqrt(np.mean(np.square(each)))
    weights, total = 0.0, 0.0
    for k in range(len(each)):
        for j in range(k + 1):
            weights += each[j] * each[k]
            total += each[j] * each[k] * sims[j, k]
    balance = 1 - abs(total / weights - tau) / tau
    return sqrt(max(0.0, certainty * balance))


@given(st.data(), st.integers(1, 5), st.floats(0.3, 1.0))
def test_q_is_the_published_formula(data, number: int, tau: float) -> None:
    logs = [[log(data.draw(UNIT)) for _ in range(data.draw(st.integers(1, 4)))] for _ in range(number)]
    sims = np.eye(number)
    for k in range(number):
        for j in range(k):
            sims[j, k] = sims[k, j] = data.draw(st.floats(-1, 1))
    confidences = [exp(float(np.mean(one))) for one in logs]
    found = exit_probability(confidences, [list(sims[k, :k]) for k in range(number)], tau=tau)
    assert found == pytest.approx(published(logs, sims, tau), abs=1e-9)
    assert 0 <= found <= 1


def test_read_literally_it_rewards_disagreement_and_stops_after_one_agent_three_times_in_four() -> None:
    q = [exit_probability([1.0, 1.0], [[], [sim]]) for sim in np.linspace(0, 1, 101)]
    assert np.argmax(q) == 10
    assert q[0] > q[100]
    assert exit_probability([1.0], [[]]) == pytest.approx(sqrt(1 - 0.3 / 0.7))


@given(st.data(), st.integers(1, 4), st.floats(0.3, 1.0))
def test_q_is_bounded_before_texts_are_compared(data, number: int, tau: float) -> None:
    def probability(similarity) -> float:
        similar = [[similarity() for _ in range(k)] for k in range(number)]
        return exit_probability(confidences, similar, tau=tau)

    confidences = data.draw(st.lists(UNIT, min_size=number, max_size=number))
    least, most = probability_range(confidences, tau=tau)
    assert least - 1e-12 <= probability(lambda: data.draw(st.floats(0, 1))) <= most + 1e-12
    assert least == pytest.approx(min(probability(lambda: 0.0), probability(lambda: 1.0)))
    anywhere = [probability(lambda sim=sim: sim) for sim in np.linspace(0, 1, 1001)]
    assert most == pytest.approx(max(anywhere), abs=0.05), "somewhere it is reached"


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 4), st.integers(0, 99))
def test_token_correlations_compare_texts_of_any_length(one: int, other: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, v = (token_correlation(rng.normal(size=(tokens, size))) for tokens in (one, other))
    assert np.allclose(np.diag(u), 1)
    assert np.allclose(u, u.T)
    assert frobenius_cosine(u, u) == pytest.approx(1)
    assert frobenius_cosine(u, v) == frobenius_cosine(v, u)
    assert -1e-12 <= frobenius_cosine(u, v) <= 1, "both are positive semidefinite"
    assert frobenius_cosine(u, 3 * v) == pytest.approx(frobenius_cosine(u, v))


def votes(answers: str, rule: FasterMoa, *, confidence: float | None = 0.95, ended: int = 3) -> Ballot:
    question, first, done = answered(make_question("q"), list(answers))
    done = {
        key: replace(record, confidence=confidence, response=Response(f"It is {record.answer}."))
        for key, record in list(done.items())[:ended]
    }
    graph = CallGraph(nodes=(Node(name=PROPOSE),), rule=rule, compare=comparisons())
    return QuestionState(graph, question, first, done).ask(rule, first)[0]


def test_draws_follow_the_seed_and_the_key_and_stop_at_the_first_agent_that_is_enough() -> None:
    keys = [CallKey("q", "propose", slot) for slot in range(2)]
    odds = [exit_probability([0.95], [[]]), exit_probability([0.95, 0.95], [[], [1.0]])]
    seen = set()
    for seed in range(40):
        rule = FasterMoa(seed=seed)
        verdict = rule.decided_early(votes("AAB", rule))
        stops = [draw(seed, key) < one for key, one in zip(keys, odds, strict=True)]
        wanted = stops.index(True) + 1 if any(stops) else None
        assert (None if verdict is None else len(verdict.read)) == wanted
        assert verdict is None or not verdict.skip
        seen.add(wanted)
        early = rule.decided_early(votes("AAB", rule, ended=1))
        assert (early is None) == (wanted != 1)
    assert seen == {1, 2, None}


def test_behind_the_last_agent_there_is_nobody_to_cancel() -> None:
    rule = FasterMoa(seed=0, tau=0.5)  # Q = 0 after one agent and where two agree, and 0.82 where two differ
    assert draw(0, CallKey("q", "propose", 1)) < 0.8
    assert rule.decided_early(votes("AB", rule, confidence=1.0, ended=2)) is None
    assert rule.decided_early(votes("ABA", rule, confidence=1.0)).read == (0, 1)
    assert rule.decided_early(votes("AAA", rule, confidence=1.0)) is None
    assert rule.decided_early(votes("BAA", rule, confidence=1.0)).answer == "B", "only of those that are read"


def test_texts_are_compared_where_somebody_embeds_them() -> None:
    heard = []

    def embed(text: str) -> np.ndarray:
        heard.append(text)
        return np.array([[1.0, 2.0]])  # all alike, though answers differ

    by_answers = FasterMoa(seed=0, tau=0.5)
    assert by_answers.decided_early(votes("ABC", by_answers, confidence=1.0)).read == (0, 1)
    rule = FasterMoa(seed=0, tau=0.5, similarity="embeddings", embed=embed)
    ballot = votes("ABC", rule, confidence=1.0)
    heard.clear()
    assert rule.decided_early(ballot) is None
    assert heard == ["It is A.", "It is B."]
    heard.clear()
    rule.decided_early(votes("ABC", rule, ended=1))
    assert heard == [], "one agent is compared with nobody"
    rule.load()
    assert heard == ["ready"], "a model that embeds is loaded before it is needed"


def test_texts_are_embedded_only_where_they_decide() -> None:
    heard = []

    def embed(text: str) -> np.ndarray:
        heard.append(text)
        return np.array([[1.0, 2.0]])  # all alike, so that Sim is 1 as by answers

    for seed in range(200):
        texts = FasterMoa(seed=seed, similarity="embeddings", embed=embed)
        answers = FasterMoa(seed=seed)
        assert texts.decided_early(votes("AAA", texts)) == answers.decided_early(votes("AAA", answers))
    assert 0 < len(heard) < 200


def test_without_a_confidence_the_rule_says_whose() -> None:
    rule = FasterMoa(seed=0)
    with pytest.raises(ValueError, match="the confidence of q, propose, slot 0 must be known, got None"):
        rule.decided_early(votes("AAB", rule, confidence=None))
