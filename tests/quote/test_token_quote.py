"""What the first questions say of a whole batch on servers."""

from random import Random

import pytest

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.spending import Cost, Spent, TokenPrice
from mosaic.core.workload import PROPOSE, CallKey
from mosaic.quote.tokens import Limit, describe_tokens, predict, quote_tokens

PRICES = {0: TokenPrice(input_dollars_per_mtok=1, output_dollars_per_mtok=10)}


def record(question: str, output_tokens: int, *, expert: str = "a", server: int = 0, attempt: int = 0) -> CallRecord:
    return CallRecord(
        key=CallKey(question, PROPOSE, server), expert=expert, session=0, workers=(server,), prompt_tokens=1000,
        output_tokens=output_tokens, queued_ts=0.0, admitted_ts=0.0, first_token_ts=None, finished_ts=1.0,
        attempt=attempt, status=CallStatus.FINISHED,
    )  # fmt: skip


def quote_of(*records: CallRecord, num_questions: int = 10, **limits: Limit):
    names = list(dict.fromkeys(each.key.question for each in records))
    spent = Cost(Spent(num_requests=len(records)), None)
    return quote_tokens(records, names, num_questions, name="q", spent=spent, prices=PRICES, limits=limits)


def test_needs_grow_with_the_number_of_questions_and_dollars_by_price() -> None:
    quote = quote_of(record("q0", 100), record("q1", 300, attempt=1))
    assert quote.needs["a"][:3] == (15, 10_000, 2_000)
    assert quote.total.p50 == pytest.approx((10_000 * 1 + 2_000 * 10) / 1e6)
    assert quote.total.p90 > quote.total.p50


def test_a_model_without_a_price_leaves_the_sum_open_and_is_named() -> None:
    quote = quote_of(record("q0", 100), record("q0", 100, expert="b", server=1), record("q1", 100))
    assert quote.dollars["a"] is not None
    assert (quote.dollars["b"], quote.total) == (None, None)
    assert "no price is known of b: --price b=IN/OUT" in describe_tokens(quote)


def test_the_slowest_limit_of_a_minute_bounds_the_time() -> None:
    records = [record("q0", 1000), record("q1", 1000)]
    quote = quote_of(*records, a=Limit(requests_per_min=5))
    assert (quote.least_s, quote.slowest) == (120, "a")
    quote = quote_of(*records, a=Limit(requests_per_min=5, tokens_per_min=5000))
    assert quote.least_s == 240
    assert quote_of(*records).slowest is None


def test_one_question_shows_no_spread() -> None:
    assert predict([1.0], 10) is None


def test_nine_of_ten_batches_stay_below_p90() -> None:
    draw, num_below, num_batches = Random(0), 0, 2000
    for _ in range(num_batches):
        dollars = [draw.gauss(3.0, 1.0) for _ in range(100)]
        num_below += sum(dollars) <= predict(dollars[:20], 100).p90
    # The standard error of a share of 0.9 of 2,000 is 0.7 points.
    assert num_below / num_batches == pytest.approx(0.9, abs=0.021)
