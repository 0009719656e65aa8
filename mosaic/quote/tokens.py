"""What a batch on servers will cost, from the requests and tokens of its first questions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf, sqrt
from statistics import fmean, variance
from typing import Any, NamedTuple

from mosaic.core.results import SERVED, CallRecord
from mosaic.core.spending import Cost, Prices, dollars_text
from mosaic.core.text_table import aligned
from mosaic.core.workload import ExpertName
from mosaic.quote.prices import duration

DEFAULT_QUESTIONS = 20
"""Answered for a quote, or a tenth of the batch where that is less."""


class Needs(NamedTuple):
    """What questions need of one model."""

    num_requests: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    dollars: float | None = 0.0
    """None: its price is not known."""

    def plus(self, other: "Needs") -> "Needs":
        """Add the needs of others."""
        known = None if self.dollars is None or other.dollars is None else self.dollars + other.dollars
        return Needs(
            self.num_requests + other.num_requests,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            known,
        )


class Range(NamedTuple):
    """Dollars, as likely more as less, and what nine of ten batches stay below."""

    p50: float
    p90: float


class Limit(NamedTuple):
    """Requests and tokens of a minute that the servers of a model take together; infinite: no limit."""

    requests_per_min: float = inf
    tokens_per_min: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuote:
    """What a batch on servers needs in all."""

    name: str
    num_questions: int
    num_answered: int
    """Of the first ones, for this quote."""
    spent: Cost
    """So far."""
    needs: Mapping[ExpertName, Needs]
    """Expected for all questions."""
    dollars: Mapping[ExpertName, Range | None]
    """None: a price is not known, or one question shows no spread."""
    total: Range | None
    least_s: float
    """The time that limits of requests and tokens a minute take; 0: there are none."""
    slowest: ExpertName | None
    """Whose limits these are."""
    stopped: str | None
    """Which cap ended the quote before it had all its questions."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        models = {name: each._asdict() | {"dollars": as_dict(self.dollars[name])} for name, each in self.needs.items()}
        return {
            "name": self.name,
            "num_questions": self.num_questions,
            "num_answered": self.num_answered,
            "spent": self.spent.as_dict(),
            "models": models,
            "dollars": as_dict(self.total),
            "least_s": self.least_s,
            "stopped": self.stopped,
        }


def as_dict(dollars: Range | None) -> dict[str, float] | None:
    """Return a range as plain values."""
    return None if dollars is None else dollars._asdict()


def quote_tokens(
    records: Iterable[CallRecord],
    answered: Sequence[str],
    num_questions: int,
    *,
    name: str,
    spent: Cost,
    prices: Prices,
    limits: Mapping[ExpertName, Limit],
    stopped: str | None = None,
) -> TokenQuote:
    """Extrapolate from the questions that are answered to the whole batch.

    Parameters
    ----------
    records
        Calls that have ended.
    answered
        Questions of which every call has ended with a text.
    num_questions
        Of the batch.
    name, spent, stopped
        See ``TokenQuote``.
    prices
        By server.
    limits
        Of a minute, by expert.
    """
    by_question: dict[str, dict[ExpertName, Needs]] = {question: {} for question in answered}
    for record in records:
        if record.key.question in by_question and record.status in SERVED:
            needs = by_question[record.key.question]
            needs[record.expert] = needs.get(record.expert, Needs()).plus(_needs_of(record, prices))
    experts = sorted({expert for needs in by_question.values() for expert in needs})
    samples = {expert: [needs.get(expert, Needs()) for needs in by_question.values()] for expert in experts}
    factor = num_questions / len(answered)
    summed = {expert: _sum(needs) for expert, needs in samples.items()}
    whole = {expert: _scaled(needs, factor) for expert, needs in summed.items()}
    least_s = {expert: _least_s(needs, limits.get(expert, Limit())) for expert, needs in whole.items()}
    slowest = max(least_s, key=lambda expert: least_s[expert])
    return TokenQuote(
        name=name,
        num_questions=num_questions,
        num_answered=len(answered),
        spent=spent,
        needs=whole,
        dollars={expert: predict([each.dollars for each in samples[expert]], num_questions) for expert in experts},
        total=predict([_sum(needs.values()).dollars for needs in by_question.values()], num_questions),
        least_s=least_s[slowest],
        slowest=slowest if least_s[slowest] else None,
        stopped=stopped,
    )


def predict(dollars: Sequence[float | None], num_questions: int) -> Range | None:
    """Predict what all questions cost from what the first ones did, which are taken for a random sample.

    Those answered are known. The sum of the R others has the standard deviation s sqrt(R + R^2 / n), with the spread s
    of n questions. It combines the deviation of the sum with that of the mean that predicts it. P90 is Student's, with
    n - 1 degrees of freedom.

    Examples
    --------
    >>> predict([1.0, 1.0, 1.0], 30)
    Range(p50=30.0, p90=30.0)
    >>> p50, p90 = predict([0.0, 2.0] * 10, 20)
    >>> (p50, p90)  # all are known
    (20.0, 20.0)
    """
    known = [each for each in dollars if each is not None]
    if len(known) < max(2, len(dollars)):
        return None
    from scipy.special import stdtrit  # other quotes do without

    num_left = num_questions - len(known)
    p50 = fmean(known) * num_questions
    spread = sqrt(variance(known) * (num_left + num_left**2 / len(known)))
    return Range(p50, p50 + float(stdtrit(len(known) - 1, 0.9)) * spread)


def _needs_of(record: CallRecord, prices: Prices) -> Needs:
    price = prices.get(record.workers[0]) if record.workers else None
    dollars = None if price is None else price.dollars(record.prompt_tokens, record.output_tokens)
    return Needs(1.0 + record.attempt, record.prompt_tokens, record.output_tokens, dollars)


def _sum(needs: Iterable[Needs]) -> Needs:
    return reduce(Needs.plus, needs, Needs())


def _scaled(needs: Needs, factor: float) -> Needs:
    dollars = None if needs.dollars is None else needs.dollars * factor
    return Needs(needs.num_requests * factor, needs.prompt_tokens * factor, needs.output_tokens * factor, dollars)


def _least_s(needs: Needs, limit: Limit) -> float:
    tokens = needs.prompt_tokens + needs.output_tokens
    return 60 * max(needs.num_requests / limit.requests_per_min, tokens / limit.tokens_per_min)


def describe_tokens(quote: TokenQuote) -> str:
    """Write a quote as `mosaic quote` prints it."""
    answered = f"the first {quote.num_answered:,} of {quote.num_questions:,} questions are answered"
    rows = [
        [name, *(f"{count:,.0f}" for count in each[:3]), *_amounts(quote.dollars[name])]
        for name, each in quote.needs.items()
    ]
    if len(rows) > 1:
        total = _sum(quote.needs.values())
        rows.append(["all", *(f"{count:,.0f}" for count in total[:3]), *_amounts(quote.total)])
    table = [["model", "requests", "tokens in", "tokens out", "P50", "P90"], *rows]
    notes = []
    unknown = [name for name, each in quote.needs.items() if each.dollars is None]
    if unknown:
        notes.append(f"no price is known of {', '.join(unknown)}: --price {unknown[0]}=IN/OUT")
    elif quote.total is None:
        notes.append("one question shows no spread: --pilot 20 answers more")
    if quote.slowest is not None:
        notes.append(f"at least {duration(quote.least_s)}, by the limits of a minute of {quote.slowest}")
    if quote.stopped is not None:
        notes.append(f"STOPPED: {quote.stopped}")
    notes.append("all questions are priced as the first ones; mosaic batch repeats none of these")
    head = f"quote for {quote.name}: {answered}, {quote.spent.text} so far"
    return "\n".join([head, "", *aligned(table), "", *notes]) + "\n"


def _amounts(dollars: Range | None) -> list[str]:
    return ["-", "-"] if dollars is None else [dollars_text(dollars.p50), dollars_text(dollars.p90)]
