"""What calls on servers cost: prices of tokens, what was spent, and the most that may be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast1, NotNegative, Positive, checked
from mosaic.core.workload import ExpertName

MILLION = 1_000_000
ROUNDING_FRAC = 1e-9
"""A sum of prices may be so much above a cap that it equals."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("price.")
class TokenPrice:
    """What a server asks for a million tokens; cached ones cost what the others do."""

    input_dollars_per_mtok: NotNegative
    output_dollars_per_mtok: NotNegative

    def dollars(self, prompt_tokens: int, output_tokens: int) -> float:
        """Price tokens read and written.

        Examples
        --------
        >>> TokenPrice(input_dollars_per_mtok=1, output_dollars_per_mtok=4).dollars(500_000, 250_000)
        1.5
        """
        read, written = self.input_dollars_per_mtok * prompt_tokens, self.output_dollars_per_mtok * output_tokens
        return (read + written) / MILLION


class Payee(NamedTuple):
    """Who is paid: a server, for an expert."""

    expert: ExpertName
    server: int


class Spent(NamedTuple):
    """What calls have come to."""

    num_requests: int = 0
    """Sent, retries included."""
    num_retries: int = 0
    num_answered: int = 0
    prompt_tokens: int = 0
    """As replies say. Of a call that was under way when a run stopped, or was cancelled, the most that it may read."""
    output_tokens: int = 0
    """Likewise: the most that it may write."""

    def plus(self, other: "Spent") -> "Spent":
        """Add what other calls have come to."""
        return Spent(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


Prices: TypeAlias = Mapping[int, TokenPrice]
"""By server; one that is missing is not known."""


class Cost(NamedTuple):
    """What an expert, or all of them, came to."""

    spent: Spent
    dollars: float | None
    """None: a price is not known."""

    def as_dict(self) -> dict[str, int | float | None]:
        """Give it for summary.json."""
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
    """Add up."""
    total = Spent()
    for each in spent:
        total = total.plus(each)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("backend.")
class Cap:
    """The most that a batch may spend, on what has ended and on what is under way."""

    max_requests: AtLeast1 | None = None
    max_dollars: Positive | None = None

    def refusal(self, num_requests: int, dollars: float | None, more: float) -> str | None:
        """Say why a request may not be sent; None: it may.

        Parameters
        ----------
        num_requests, dollars
            So far, what calls under way may come to included.
        more
            Dollars that the request may cost.
        """
        if self.max_requests is not None and num_requests >= self.max_requests:
            return f"max_requests={self.max_requests:,} is reached"
        if self.max_dollars is not None and (dollars or 0.0) + more > self.max_dollars * (1 + ROUNDING_FRAC):
            spent, wanted = dollars_text(dollars or 0.0), dollars_text(more)
            return f"max_dollars={self.max_dollars:g} is reached: {spent} spent, and a request may cost {wanted}"
        return None


def dollars_text(dollars: float) -> str:
    """Write an amount, a small one with more decimals.

    Examples
    --------
    >>> [dollars_text(amount) for amount in (1234.5, 0.25, 0.000042)]
    ['$1,234.50', '$0.2500', '$0.000042']
    """
    decimals = 2 if dollars >= 1 or dollars == 0 else 4 if dollars >= 0.01 else 6
    return f"${dollars:,.{decimals}f}"
