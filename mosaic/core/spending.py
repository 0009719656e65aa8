"""Computes the costs of calls on servers: prices of tokens, amounts spent, and caps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast1, NotNegative, Positive, checked
from mosaic.core.workload import ExpertName

MILLION = 1_000_000
ROUNDING_FRAC = 1e-9
"""An amount this much above a cap still counts as equal to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("price.")
class TokenPrice:
    """Price of a server for a million tokens; cached tokens cost the same as others."""

    input_dollars_per_mtok: NotNegative
    output_dollars_per_mtok: NotNegative

    def dollars(self, prompt_tokens: int, output_tokens: int) -> float:
        """Price the tokens that were read and written.

        Examples
        --------
        >>> TokenPrice(input_dollars_per_mtok=1, output_dollars_per_mtok=4).dollars(500_000, 250_000)
        1.5
        """
        read, written = self.input_dollars_per_mtok * prompt_tokens, self.output_dollars_per_mtok * output_tokens
        return (read + written) / MILLION


class Payee(NamedTuple):
    """A server that is paid, and the expert that it serves."""

    expert: ExpertName
    server: int


class Spent(NamedTuple):
    """Requests and tokens of calls."""

    num_requests: int = 0
    """Requests sent, retries included."""
    num_retries: int = 0
    num_answered: int = 0
    num_lost: int = 0
    """Sent, and no reply came: the run had stopped, or they were cancelled. They may still be billed."""
    prompt_tokens: int = 0
    """As replies say; a call that is lost is taken to be the mean of the others."""
    output_tokens: int = 0

    def plus(self, other: "Spent") -> "Spent":
        """Add the amounts of other calls."""
        return Spent(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Spent") -> "Spent":
        """Subtract the amounts of other calls."""
        return Spent(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def with_lost(self, num_requests: int, prompt_tokens: int, output_tokens: int) -> "Spent":
        """Add a call without a reply; the tokens are the most that it may read and write, for where no other ended.

        Examples
        --------
        >>> Spent(num_answered=2, prompt_tokens=100, output_tokens=9).with_lost(1, 999, 999)[-2:]
        (150, 14)
        """
        num_known = self.num_answered + self.num_lost
        if num_known:
            prompt_tokens, output_tokens = (-(-sum_ // num_known) for sum_ in (self.prompt_tokens, self.output_tokens))
        return self.plus(
            Spent(num_requests=num_requests, num_lost=1, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        )


Prices: TypeAlias = Mapping[int, TokenPrice]
"""By server; a missing price is not known."""


class Cost(NamedTuple):
    """The cost of an expert, or of all."""

    spent: Spent
    dollars: float | None
    """None: a price is not known."""

    @property
    def text(self) -> str:
        """Say it in a few words.

        Examples
        --------
        >>> Cost(Spent(num_requests=3, num_retries=1), 0.25).text
        '3 requests (1 retried), $0.2500'
        """
        notes = [
            f"{count:,} {what}"
            for count, what in ((self.spent.num_retries, "retried"), (self.spent.num_lost, "lost"))
            if count
        ]
        more = f" ({', '.join(notes)})" if notes else ""
        priced = "" if self.dollars is None else f", {dollars_text(self.dollars)}"
        return f"{self.spent.num_requests:,} requests{more}{priced}"

    def as_dict(self) -> dict[str, int | float | None]:
        """Return it as a dictionary, for summary.json."""
        return {**self.spent._asdict(), "dollars": self.dollars}


def dollars_of(spent: Mapping[Payee, Spent], prices: Prices) -> float | None:
    """Price what was spent; None: a price is not known."""
    if any(payee.server not in prices for payee in spent):
        return None
    return add_in_order(
        prices[payee.server].dollars(each.prompt_tokens, each.output_tokens) for payee, each in spent.items()
    )


def cost_of(spent: Mapping[Payee, Spent], prices: Prices) -> Cost:
    """Sum what was spent."""
    return Cost(total_of(spent.values()), dollars_of(spent, prices))


def cost_by_expert(spent: Mapping[Payee, Spent], prices: Prices) -> dict[ExpertName, Cost]:
    """Sum what was spent on each expert."""
    names = dict.fromkeys(payee.expert for payee in spent)
    return {
        name: cost_of({payee: each for payee, each in spent.items() if payee.expert == name}, prices) for name in names
    }


def total_of(spent: Iterable[Spent]) -> Spent:
    """Add up.

    Examples
    --------
    >>> total_of([Spent(num_requests=2), Spent(num_requests=1, num_retries=1)])[:2]
    (3, 1)
    """
    return reduce(Spent.plus, spent, Spent())


def total_cost(costs: Mapping[ExpertName, Cost]) -> Cost:
    """Sum what experts came to; dollars are not known where those of one that was sent anything are not."""
    dollars = [cost.dollars for cost in costs.values()]
    known = [each for each in dollars if each is not None]
    spent = total_of(cost.spent for cost in costs.values())
    return Cost(spent, add_in_order(known) if len(known) == len(dollars) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("backend.")
class Cap:
    """The most that a batch may spend, calls in progress included."""

    max_requests: AtLeast1 | None = None
    """Retries included."""
    max_dollars: Positive | None = None

    def refusal(self, num_requests: int, dollars: float, more: float) -> str | None:
        """Say why a request may not be sent; None: it may.

        Parameters
        ----------
        num_requests, dollars
            So far, with the most that calls in progress may cost.
        more
            The most dollars that the request may cost.

        Examples
        --------
        >>> Cap(max_requests=3).refusal(2, 0.0, 0.0) is None
        True
        >>> Cap(max_dollars=0.5).refusal(2, 0.25, 0.5)
        'max_dollars=0.5 is reached: $0.2500 spent, and the next request may cost $0.5000'
        """
        if self.max_requests is not None and num_requests >= self.max_requests:
            return f"max_requests={self.max_requests} is reached"
        if self.max_dollars is not None and dollars + more > self.max_dollars * (1 + ROUNDING_FRAC):
            spent, wanted = dollars_text(dollars), dollars_text(more)
            return f"max_dollars={self.max_dollars:g} is reached: {spent} spent, and the next request may cost {wanted}"
        return None


def dollars_text(dollars: float) -> str:
    """Format an amount, a small one with more decimals.

    Examples
    --------
    >>> [dollars_text(amount) for amount in (1234.5, 0.25, 0.000042)]
    ['$1,234.50', '$0.2500', '$0.000042']
    """
    decimals = 2 if dollars >= 1 or dollars == 0 else 4 if dollars >= 0.01 else 6
    return f"${dollars:,.{decimals}f}"
