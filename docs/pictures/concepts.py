"""Draws concepts.png: ``python docs/pictures/concepts.py``."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mosaic.figures.style import INK, LOAD_HATCH, MUTED, PAGE_WIDTH_IN, PALETTE, styled

COLOURS = {"A": PALETTE[0], "B": PALETTE[1], "C": PALETTE[2], "aggregator": PALETTE[5]}
FIRST, SECOND = "q1", "q2"
SESSIONS = {
    "GPU 0": [("A", 0.0, 1.0, [(FIRST, 1.0, 2.6), (SECOND, 1.4, 4.2)]), ("aggregator", 6.4, 1.0, [(SECOND, 7.4, 9.4)])],
    "GPU 1": [
        ("B", 0.0, 0.8, [(FIRST, 0.8, 1.7), (SECOND, 0.8, 2.4)]),
        ("C", 2.4, 0.9, [(FIRST, 3.3, 4.3), (SECOND, 3.6, 6.4)]),
    ],
}
"""By GPU: expert, start of its load, seconds of the load, and the calls with start and end."""


def box(axes: Axes, x: float, y: float, text: str, colour: str = "white", width: float = 1.5) -> None:
    """Draw a box with a text in it, its centre at x and y."""
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "linewidth": 0.8, "edgecolor": INK}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.26), width, 0.52, facecolor=colour, **style))
    axes.text(x, y, text, ha="center", va="center", color=text_colour(colour))


def text_colour(ground: str) -> str:
    """Choose the colour of a text that is easy to read on a ground."""
    return "white" if ground == PALETTE[0] else INK


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.8, color=MUTED))


def draw_questions(axes: Axes) -> None:
    """Draw how two questions become two answers."""
    axes.set(xlim=(0, 14), ylim=(-0.2, 3.2))
    axes.axis("off")
    heights = {"A": 2.6, "B": 1.5, "C": 0.4}
    for question, y in ((FIRST, 2.1), (SECOND, 0.9)):
        box(axes, 1.0, y, f"question {question}")
        for height in heights.values():
            arrow(axes, (1.8, y), (3.2, height))
    for name, height in heights.items():
        box(axes, 4.0, height, f"expert {name}", COLOURS[name])
        arrow(axes, (4.8, height), (6.35, 1.5))
    box(axes, 7.0, 1.5, "gate", width=1.2)
    arrow(axes, (7.65, 1.6), (11.9, 2.5))
    arrow(axes, (7.65, 1.4), (8.9, 0.6))
    axes.text(9.4, 2.25, "q1: two of three agree", ha="center", va="bottom", color=MUTED)
    axes.text(8.1, 0.75, "q2: all differ", ha="right", va="center", color=MUTED)
    box(axes, 9.9, 0.5, "aggregator", COLOURS["aggregator"], width=1.9)
    arrow(axes, (10.9, 0.5), (11.9, 0.5))
    box(axes, 12.8, 2.5, "answer to q1", width=1.7)
    box(axes, 12.8, 0.5, "answer to q2", width=1.7)


def draw_time(axes: Axes) -> None:
    """Draw the same calls in sessions on two GPUs."""
    for lane, (gpu, sessions) in enumerate(SESSIONS.items()):
        y = 1.3 - 1.3 * lane
        axes.text(-0.15, y + 0.5, gpu, ha="right", va="center", color=INK)
        for expert, start, load_s, calls in sessions:
            colour = COLOURS[expert]
            axes.barh(
                y + 0.5, load_s, 1.0, left=start, color="white", edgecolor=colour, hatch=LOAD_HATCH, linewidth=0.8
            )
            end = max(call[2] for call in calls)
            axes.barh(y + 0.5, end - start, 1.0, left=start, fill=False, edgecolor=colour, linewidth=0.8)
            for row, (question, begin, finish) in enumerate(calls):
                middle = y + (0.5 if len(calls) == 1 else 0.74 - 0.48 * row)
                axes.barh(middle, finish - begin, 0.4, left=begin, color=colour)
                name = expert if expert != "aggregator" else "merge"
                axes.text(
                    (begin + finish) / 2,
                    middle,
                    f"{name}: {question}",
                    ha="center",
                    va="center",
                    color=text_colour(colour),
                )
    axes.annotate(
        "a session of A: load, then calls",
        (0.5, 2.3),
        (0.5, 2.62),
        color=MUTED,
        ha="left",
        va="bottom",
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6},
    )
    for ready, text in ((4.3, "q1 is final"), (9.4, "q2 is final: makespan")):
        axes.axvline(ready, ymax=0.86, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.text(ready, 2.62, text, ha="center" if ready < 9 else "right", va="bottom", color=INK)
    axes.set(xlim=(-1.0, 9.9), ylim=(-0.15, 3.0), yticks=[], xlabel="time", xticks=[])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


@styled()
def main() -> None:
    """Draw both halves."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(PAGE_WIDTH_IN, 3.9), height_ratios=(1.25, 1))
    draw_questions(above)
    draw_time(below)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=200)


if __name__ == "__main__":
    main()
