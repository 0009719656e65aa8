"""Reads prices of a GPU hour, from the command line or a file with dates, and reads and writes durations."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec

from mosaic.core.checks import NotNegative, checked, require, require_name

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
@checked("price: ")
class Price:
    """Price of one GPU of a kind."""

    dollars_per_hour: NotNegative
    as_of: date | None = None
    """None: given on the command line, and so of today."""


def parse_price(text: str) -> tuple[str, Price]:
    """Read a price of the command line.

    Raises
    ------
    ValueError
        If it is not valid.

    Examples
    --------
    >>> parse_price("a100_80gb=1.89")
    ('a100_80gb', Price(dollars_per_hour=1.89, as_of=None))
    """
    kind, equals, value = text.partition("=")
    try:
        amount = float(value)
    except ValueError:
        amount = -1.0
    require(bool(kind and equals) and 0 <= amount < float("inf"), "price", "KIND=DOLLARS_PER_HOUR", text)
    return kind, Price(amount)


def load_prices(path: str | Path) -> dict[str, Price]:
    """Read a file of prices, JSON: {"a100_80gb": {"dollars_per_hour": 1.89, "as_of": "2026-11-01"}, ...}.

    Raises
    ------
    ValueError
        If it cannot be read, or a price lacks its date.
    """
    require_name(str(path), "prices")
    try:
        prices = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Price])
    except OSError as error:
        raise ValueError(f"prices must be a file that can be read, got {path} ({error.strerror})") from error
    except msgspec.DecodeError as error:
        raise ValueError(
            f'prices must be JSON of the form {{"KIND": {{"dollars_per_hour": 1.89, "as_of": "2026-11-01"}}}}, '
            f"got {path} ({error})"
        ) from error
    for kind, price in prices.items():
        require(price.as_of is not None, f"prices: {kind}.as_of", "the date of the price, as 2026-11-01", None)
    return prices


def parse_duration_s(text: str) -> float:
    """Read a duration: seconds, or with s, min, h or d.

    Raises
    ------
    ValueError
        If it is not valid.

    Examples
    --------
    >>> parse_duration_s("90"), parse_duration_s("45min"), parse_duration_s("1.5h"), parse_duration_s("2d")
    (90.0, 2700.0, 5400.0, 172800.0)
    """
    units = {"min": 60.0, "h": 3600.0, "d": 86400.0, "m": 60.0, "s": 1.0}
    number, scale = text.strip(), 1.0
    for unit, seconds in units.items():
        if number.endswith(unit):
            number, scale = number.removesuffix(unit).strip(), seconds
            break
    try:
        value = float(number) * scale
    except ValueError:
        value = -1.0
    require(0 < value < float("inf"), "duration", "seconds above 0, or with s, min, h or d", text)
    return value


def duration(seconds: float) -> str:
    """Write a duration in the largest two units.

    Examples
    --------
    >>> duration(42.3), duration(600), duration(7260), duration(90000)
    ('42.3 s', '10:00 min', '2:01 h', '1 d 1 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < HOUR_S:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
    minutes = int(seconds // 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}:{minutes % 60:02} h"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
