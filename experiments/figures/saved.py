"""Time saved step by step, stacked: bars of simulated batches beside what was published."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.analysis.intervals import Estimate
from experiments.figures.style import INK, MUTED, PALETTE, SMALL_PT, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 0.7
SHIFT = 0.1
"""Between the intervals of a bar's steps."""


class Bar(NamedTuple):
    """A stack: what has been saved after each step, as shares of the baseline's time."""

    label: str
    steps: Sequence[tuple[str, Estimate]]


@styled()
def draw_saved(groups: Sequence[tuple[str, Sequence[Bar]]], names: Sequence[str]) -> "Figure":
    """Draw groups of bars side by side; a step that costs time is hatched over what it takes away.

    Parameters
    ----------
    groups
        With their titles.
    names
        Of all steps, in the order of their colours.
    """
    from matplotlib.patches import Patch

    figure = new_figure(2.9, 7.0)
    widths = [len(bars) + 0.6 for _, bars in groups]
    panels = figure.subplots(1, len(groups), sharey=True, width_ratios=widths, squeeze=False)[0]
    colours = {name: PALETTE[place] for place, name in enumerate(names)}
    for axes, (title, bars) in zip(panels, groups, strict=True):
        for place, bar in enumerate(bars):
            _draw(axes, place, bar, colours)
        axes.set_xticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_xlim(-0.6, len(bars) - 0.4)
        axes.set_title(title, fontsize=SMALL_PT + 1)
        axes.grid(axis="x", visible=False)
        axes.axhline(0, color=INK, linewidth=0.6)
    panels[0].set_ylabel("time saved of all to all (%)")
    panels[0].set_ylim(top=100)
    patches = [Patch(facecolor=colours[name], label=name) for name in names]
    hatched = Patch(facecolor="none", edgecolor=INK, hatch="////", linewidth=0, label="costs time")
    legend_below(figure, [*patches, hatched])
    return figure


def _draw(axes: "Axes", place: int, bar: Bar, colours: dict[str, str]) -> None:
    before = 0.0
    for number, (name, saved) in enumerate(bar.steps):
        after = 100 * saved.mean
        if after >= before:
            axes.bar(place, after - before, WIDTH, bottom=before, color=colours[name])
        else:
            axes.bar(
                place, before - after, WIDTH, bottom=after, facecolor="none", edgecolor=colours[name], hatch="////",
                linewidth=0,
            )  # fmt: skip
            axes.bar(place, 0.8, WIDTH, bottom=after, color=colours[name])
        span = saved.shown()
        if span is not None:
            low, high = (100 * end for end in span)
            at = place + SHIFT * (number - (len(bar.steps) - 1) / 2)
            axes.errorbar(at, after, [[after - low], [high - after]], color=INK, capsize=1.5, linewidth=0.8)
        before = after
    axes.annotate(
        f"{before:.0f}", (place, max(100 * saved.mean for _, saved in bar.steps)), (0, 5), textcoords="offset points",
        ha="center", fontsize=SMALL_PT, color=MUTED,
    )  # fmt: skip
