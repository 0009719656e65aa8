"""Lays out tables of text for the screen."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Write rows with aligned columns, a line each.

    Parameters
    ----------
    rows
        Cells; all rows have as many.
    left
        Columns that are aligned to the left; numbers are aligned to the right.

    Examples
    --------
    >>> print("\\n".join(aligned([["expert", "calls"], ["A", "1,200"]])))
    expert  calls
    A       1,200
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
