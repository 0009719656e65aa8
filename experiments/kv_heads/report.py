"""The study of a checkpoint's KV heads as text and as a figure."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.figures.kv_quality import draw_kv_quality
from experiments.kv_heads.quality import DENSE, PROFILED, RANDOM, Quality
from experiments.studies.published_sparse_kv import PROMOTED_FRAC, UNSTABLE_OVERLAP_FRAC
from mosaic.comparison.estimate import Estimate, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heads_report(found: Mapping[str, Any]) -> str:
    """Say how stable heads are, and how far two sets of documents agree on them."""
    sets = [name for name, rows in found.items() if isinstance(rows, list)]
    means = {name: {key: fmean(row[key] for row in found[name]) for key in found[name][0]} for name in sets}
    about = f"""
        Stability of a head: the share of its best {found["budget_pages"]} pages that are still among them 16
        steps later. Unstable are the quarter of all heads that most documents of a set count among their least
        stable ones. Each document: a prompt of {found["prompt_tokens"]:,} tokens, then {found["steps"]}
        teacher-forced decode steps, dense. Recall and attention are of pages ranked at every step."""
    overlap = f"""
        Unstable heads that both sets name: {found["overlap_frac"]:.2f} of them (published, between tasks of a
        larger model: {UNSTABLE_OVERLAP_FRAC:.2f}; by chance {found["random_overlap_frac"]:.2f})."""
    low, high = PROMOTED_FRAC
    shares = ", ".join(f"{means[name]['promoted_stable']:.0%} ({name})" for name in sets)
    promoted = f"""
        Promoted at a ranking, stable heads: {shares} of the best pages (published: {low:.0%} to {high:.0%})."""
    rows = [
        f"| {label} | " + " | ".join(f"{means[name][key]:.1%}" for name in sets) + " |"
        for key, label in (
            ("overlap_stable", "stability, stable heads"),
            ("overlap_unstable", "stability, unstable heads"),
            ("promoted_stable", "promoted, stable heads"),
            ("promoted_unstable", "promoted, unstable heads"),
            ("recall", "recall of the pages with most attention"),
            ("attention_mass", "attention on the pages that are read"),
        )
    ]
    head = " | ".join(f"{name}, {len(found[name])} documents" for name in sets)
    lines = ["## Heads", "", *_wrapped(about), "", *_wrapped(overlap), "", *_wrapped(promoted), ""]
    lines += [f"| mean over documents | {head} |", f"|{' --- |' * (1 + len(sets))}", *rows, ""]
    return "\n".join(lines)


def quality_report(rows: Sequence[Quality], num_texts: int, scored_tokens: int) -> str:
    """Say what budgets cost, and whether the profiled heads are the ones to protect."""
    texts = {row.text for row in rows}
    about = f"""
        {len(texts)} of {num_texts} texts that no profile has seen, {scored_tokens} tokens of each scored behind a
        prompt, teacher-forced; means over texts with 95% intervals. Protected as unstable: the profiled heads, or as
        many drawn at random anew for each text. Agreement: tokens whose most likely one is that of the dense
        model."""
    lines = ["## Quality by budget", "", *_wrapped(about), ""]
    lines += ["| pages | protected | NLL above dense, nats | top-1 agreement |", "| --- | --- | --- | --- |"]
    for budget in budgets_of(rows):
        for protected in (PROFILED, RANDOM):
            cost = shown(loss_of(rows, budget, protected), "{:+.3f}")
            agreement = shown(estimate(_of(rows, budget, protected, "agreement_frac")), "{:.1%}")
            lines.append(f"| {budget} | {protected} | {cost} | {agreement} |")
    lines += ["", "Profiled against random heads, paired by text (below 0: profiled heads are better):", ""]
    lines += [
        "| pages | NLL, nats | agreement, points (above 0: better) | verdict |",
        "| --- | --- | --- | --- |",
    ]
    for budget in budgets_of(rows):
        nll = estimate(_differences(rows, "nll", (budget, PROFILED), (budget, RANDOM)))
        kept = _differences(rows, "agreement_frac", (budget, PROFILED), (budget, RANDOM))
        points = estimate([100 * difference for difference in kept])
        lines.append(f"| {budget} | {shown(nll, '{:+.4f}')} | {shown(points, '{:+.2f}')} | {verdict(nll)} |")
    dense = shown(estimate(_of(rows, 0, DENSE, "nll")), "{:.3f}")
    return "\n".join([*lines, "", f"Dense: {dense} nats.", ""])


def verdict(difference: Estimate) -> str:
    """Read an interval of the NLL of profiled heads less that of random ones."""
    ends = difference.shown()
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "no difference shown"
    return "profiled heads are better" if ends[1] < 0 else "random heads are better"


def budgets_of(rows: Sequence[Quality]) -> list[int]:
    """List the budgets, largest first."""
    return sorted({row.budget_pages for row in rows} - {0}, reverse=True)


def loss_of(rows: Sequence[Quality], budget: int, protected: str) -> Estimate:
    """Estimate the NLL above that of the dense model, paired by text."""
    return estimate(_differences(rows, "nll", (budget, protected), (0, DENSE)))


def _differences(rows: Sequence[Quality], name: str, one: tuple[int, str], other: tuple[int, str]) -> list[float]:
    return [a - b for a, b in zip(_of(rows, *one, name), _of(rows, *other, name), strict=True)]


def _of(rows: Sequence[Quality], budget: int, protected: str, name: str) -> list[float]:
    chosen = [row for row in rows if (row.budget_pages, row.protected) == (budget, protected)]
    return [getattr(row, name) for row in sorted(chosen, key=lambda row: row.text)]


def shown(found: Estimate, form: str) -> str:
    """Write a mean with its interval."""
    ends = found.shown()
    mean = form.format(found.mean)
    return mean if ends is None else f"{mean} ({form.format(ends[0])} to {form.format(ends[1])})"


def quality_figure(rows: Sequence[Quality]) -> "Figure":
    """Draw loss and agreement by budget."""
    budgets = budgets_of(rows)
    losses = {kind: [loss_of(rows, budget, kind) for budget in budgets] for kind in (PROFILED, RANDOM)}
    agreements = {
        kind: [estimate(_of(rows, budget, kind, "agreement_frac")) for budget in budgets] for kind in (PROFILED, RANDOM)
    }
    return draw_kv_quality(budgets, losses, agreements)


def read_heads_found(path: Path) -> dict[str, Any]:
    """Read what a profile has found."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width=120)
