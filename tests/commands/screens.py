"""Screens as a README shows them, an indented command and what it prints, and lines without their numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NUMBER = re.compile(r"(?<![A-Za-z])\d[\d.,:]*(?: (?:s|min|h)\b)?")
"""With its unit: a duration that is another may be told in minutes."""
PLAN = re.compile(r"(ilp \(\w+\)|round_robin|data_parallel)$")


class Screen(NamedTuple):
    """A command and the lines that it prints."""

    command: str
    lines: Sequence[str]


def screens_of(path: Path) -> list[Screen]:
    """List the screens of a file, each an indented block that begins with `$`."""
    found = re.findall(r"^    \$ (.+)\n((?:    .+\n|\n(?=    [^$]))+)", path.read_text(encoding="utf-8"), re.M)
    return [Screen(command, [line.removeprefix("    ") for line in text.splitlines()]) for command, text in found]


def masked(lines: Sequence[str]) -> list[str]:
    """Give lines without numbers, without the width of columns, and without what numbers choose: plan and mark."""
    shown = (" ".join(NUMBER.sub("#", line).split()).removesuffix(" <") for line in lines)
    return [PLAN.sub("PLAN", line) for line in shown]
