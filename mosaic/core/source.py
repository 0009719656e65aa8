"""Where a declared number comes from."""

from typing import Literal, TypeAlias, get_args

from mosaic.core.checks import require

Source: TypeAlias = Literal["published", "fitted", "assumed", "measured"]
"""A paper, a fit to its baseline, nobody, or an engine."""
SOURCES: tuple[Source, ...] = get_args(Source)


def require_source(value: object, field_name: str) -> None:
    """Check a declared source."""
    require(value in SOURCES, field_name, f"one of {list(SOURCES)}", value)
