"""Measure the KV heads of a Llama-type checkpoint: how stable their best pages are, and what reading those alone costs.

    python experiments/measure_heads.py profile CHECKPOINT                       which heads are unstable, and how much
    python experiments/measure_heads.py quality CHECKPOINT --heads heads.json    what a budget of pages costs

Both write into results/multirun/flexicache unless --out names a folder.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import polars as pl
import typer

from experiments.kv_heads.texts import code, documents, prose
from experiments.lab.plots import Panel, draw
from experiments.lab.tables import append_rows, beside, markdown, means, read_table, write_table
from experiments.studies.published_sparse_kv import PROMOTED_FRAC, UNSTABLE_OVERLAP_FRAC
from mosaic.comparison.estimate import Estimate
from mosaic.config.errors import exit_with_message
from mosaic.config.places import own_folder
from mosaic.core.errors import BackendError
from mosaic.core.json_file import read_json
from mosaic.core.workload import SparseKv
from mosaic.engines.sparse_attention import UnstableHeads, write_heads
from mosaic.figures.style import pdf_bytes, png_bytes
from mosaic.report.run_folder import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.kv_heads.profile import HeadProfile

PROMPT_TOKENS = 1024
NUM_PROFILED = 4
"""Documents of a set."""
PROFILE_STEPS = 272
"""Decode steps of a document: 17 rankings."""
RANKED_PAGES = 16
"""Best pages whose changes make a head unstable."""
NUM_TEXTS = 20
SCORED_TOKENS = 400
BUDGETS = (32, 16, 8)
"""Pages."""
SETS = {"prose": prose, "code": code}
SHOWN = {
    "overlap_stable": "stability, stable heads",
    "overlap_unstable": "stability, unstable heads",
    "promoted_stable": "promoted, stable heads",
    "promoted_unstable": "promoted, unstable heads",
    "recall": "recall of the pages with most attention",
    "attention_mass": "attention on the pages that are read",
}
"""Columns of heads.csv."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0])
Checkpoint = Annotated[Path, typer.Argument(help="Folder in Hugging Face's format, or a GGUF file.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the files.")]
OUT = own_folder("flexicache")


@app.command()
def profile(checkpoint: Checkpoint, out: Out = OUT) -> None:
    """Profile the KV heads on two sets of documents; write a list of unstable heads for each."""
    with exit_with_message():
        profile_sets(checkpoint, out)


@app.command()
def quality(
    checkpoint: Checkpoint,
    heads: Annotated[Path, typer.Option(help="List of unstable heads, as the command profile writes it.")],
    out: Out = OUT,
) -> None:
    """Score texts with budgets of pages; a table that is there is continued."""
    with exit_with_message():
        table = score_texts(checkpoint, read_json(heads, UnstableHeads, "--heads", BackendError), out / "quality.csv")
        figure = quality_figure(table)
        files = {"md": quality_report(table).encode(), "png": png_bytes(figure), "pdf": pdf_bytes(figure)}
        for suffix, content in files.items():
            write_file(out, f"quality.{suffix}", content)
            print(f"written: {out / 'quality'}.{suffix}")


def profile_sets(checkpoint: Path, out: Path) -> None:
    """Profile both sets, and write a head list of each, a row for each document and the page."""
    import torch

    from experiments.kv_heads.attention import load_checkpoint
    from experiments.kv_heads.profile import consensus, profile_document, shared_frac

    torch.set_num_threads(1)
    model, tokenizer = load_checkpoint(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    kv = SparseKv(budget_pages=RANKED_PAGES)
    rows: list[dict[str, Any]] = []
    lists = []
    for name, texts in SETS.items():
        tokens = documents(texts(), tokenizer.encode, NUM_PROFILED, PROMPT_TOKENS + PROFILE_STEPS)
        profiles = [profile_document(model, document, PROFILE_STEPS, kv) for document in tokens]
        lists.append(consensus([profile.overlap for profile in profiles], kv))
        write_heads(out / f"heads_{name}.json", lists[-1])
        rows += [
            {"set": name, "document": number, **summary(profile, lists[-1])} for number, profile in enumerate(profiles)
        ]
        print(f"profiled {len(profiles)} documents of {name}", flush=True)
    table = pl.DataFrame(rows)
    write_table(out / "heads.csv", table)
    chance = len(lists[0].pairs) / (model.config.num_hidden_layers * model.config.num_key_value_heads)
    write_file(out, "heads.md", heads_report(table, shared_frac(*lists), chance).encode())
    print(f"written: {out / 'heads.md'}")


def summary(profile: "HeadProfile", unstable: UnstableHeads) -> dict[str, float]:
    """Take means over heads; pages are promoted in stable heads."""
    is_stable = profile.overlap >= 0
    for layer, head in unstable.pairs:
        is_stable[layer, head] = False
    values = (
        profile.overlap[is_stable], profile.overlap[~is_stable], profile.promoted[is_stable],
        profile.promoted[~is_stable], profile.recall, profile.mass,
    )  # fmt: skip
    return {name: round(value.mean().item(), 4) for name, value in zip(SHOWN, values, strict=True)}


def heads_report(table: pl.DataFrame, shared_frac: float, chance_frac: float) -> str:
    """Say how stable heads are, and how far two sets of documents agree on them."""
    averages = {row["set"]: row for row in table.group_by("set", maintain_order=True).mean().to_dicts()}
    counts = dict(table["set"].value_counts(sort=False).rows())
    low, high = PROMOTED_FRAC
    about = f"""
        Stability of a head: the share of its best {RANKED_PAGES} pages that are still among them 16 steps later.
        Unstable are the quarter of all heads that most documents of a set count among their least stable ones. Each
        document: a prompt of {PROMPT_TOKENS:,} tokens, then {PROFILE_STEPS} teacher-forced decode steps, dense. Recall
        and attention are of pages ranked at every step."""
    shared = f"""
        Unstable heads that both sets name: {shared_frac:.2f} of them (published, between tasks of a larger model:
        {UNSTABLE_OVERLAP_FRAC:.2f}; by chance {chance_frac:.2f})."""
    shares = ", ".join(f"{row['promoted_stable']:.0%} ({name})" for name, row in averages.items())
    promoted = f"""
        Promoted at a ranking, stable heads: {shares} of the best pages (published: {low:.0%} to {high:.0%})."""
    lines = [
        {"mean over documents": label}
        | {f"{name}, {counts[name]} documents": f"{row[key]:.1%}" for name, row in averages.items()}
        for key, label in SHOWN.items()
    ]
    return "\n\n".join(["## Heads", *map(paragraph, (about, shared, promoted)), markdown(lines)]) + "\n"


def score_texts(checkpoint: Path, heads: UnstableHeads, path: Path) -> pl.DataFrame:
    """Score texts that no profile has seen, half of each set; a text that the table has already is not scored again."""
    import torch

    from experiments.kv_heads.attention import load_checkpoint
    from experiments.kv_heads.quality import measure_text

    torch.set_num_threads(1)
    model, tokenizer = load_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    num_each = NUM_TEXTS // len(SETS)
    num_tokens = PROMPT_TOKENS + SCORED_TOKENS + 1
    texts = [
        tokens
        for source in SETS.values()
        for tokens in documents(source(), tokenizer.encode, NUM_PROFILED + num_each, num_tokens)[NUM_PROFILED:]
    ]
    keys: Any = {"text": pl.Int64, "budget_pages": pl.Int64, "protected": pl.String}
    table = read_table(path, keys)
    done = set() if table is None else set(table["text"])
    for number in sorted(set(range(len(texts))) - done, key=lambda text: (text % num_each, text)):
        append_rows(path, list(measure_text(model, number, texts[number], SCORED_TOKENS, heads, BUDGETS)))
        print(f"scored text {number}", flush=True)
    table = read_table(path, keys)
    assert table is not None
    return table


def compare(table: pl.DataFrame, baseline: pl.Expr, by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Average over texts, paired with the baseline's: rows of budget, largest first, and protected heads."""
    budgets = table.filter(pl.col("budget_pages") > 0).sort(-pl.col("budget_pages"), "text", maintain_order=True)
    paired = beside(table.rename({"text": "seed"}), baseline, by)
    return means(
        budgets.rename({"text": "seed"}).join(paired, on=["seed", "budget_pages", "protected"], maintain_order="left"),
        ["budget_pages", "protected"],
        loss=pl.col("nll") - pl.col("nll_base"),
        agreement=pl.col("agreement_frac"),
        agreement_change=100 * (pl.col("agreement_frac") - pl.col("agreement_frac_base")),
    )


def above_dense(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Compare each setting with the dense model."""
    return compare(table, pl.col("budget_pages") == 0)


def quality_report(table: pl.DataFrame) -> str:
    """Say what budgets cost, and whether the profiled heads are the ones to protect."""
    about = f"""
        {table["text"].n_unique()} of {NUM_TEXTS} texts that no profile has seen, {SCORED_TOKENS} tokens of each scored
        behind a prompt, teacher-forced; means over texts with 95% intervals. Protected as unstable: the profiled heads,
        or as many drawn at random anew for each text. Agreement: tokens whose most likely one is that of the dense
        model."""
    costs = [
        {
            "pages": row["budget_pages"],
            "protected": row["protected"],
            "NLL above dense, nats": f"{row['loss']:+.3f}",
            "top-1 agreement": f"{row['agreement']:.1%}",
        }
        for row in above_dense(table)
    ]
    gains = [
        {
            "pages": row["budget_pages"],
            "NLL, nats": f"{row['loss']:+.4f}",
            "agreement, points (above 0: better)": f"{row['agreement_change']:+.2f}",
            "verdict": verdict(row["loss"]),
        }
        for row in compare(table, pl.col("protected") == "random", ["budget_pages"])
        if row["protected"] == "profiled"
    ]
    dense = means(table.filter(budget_pages=0), ["budget_pages"], nll=pl.col("nll"))[0]["nll"]
    paired = "Profiled against random heads, paired by text (below 0: profiled heads are better):"
    parts = ["## Quality by budget", paragraph(about), markdown(costs), paired, markdown(gains)]
    return "\n\n".join([*parts, f"Dense: {dense:.3f} nats."]) + "\n"


def verdict(difference: Estimate) -> str:
    """Read an interval of the NLL of profiled heads less that of random ones."""
    ends = difference.shown()
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "no difference shown"
    return "profiled heads are better" if ends[1] < 0 else "random heads are better"


def quality_figure(table: pl.DataFrame) -> "Figure":
    """Draw loss and agreement by budget."""
    panels = {
        "loss": Panel(label="NLL above dense\n(nats)"),
        "agreement": Panel(label="same top token\n(share)"),
    }
    rows = [
        {
            "budget": row["budget_pages"],
            "mean": row[name],
            "panel": name,
            "line": f"{row['protected']} heads protected",
        }
        for row in reversed(above_dense(table))
        for name in panels
    ]
    lines = ["profiled heads protected", "random heads protected"]
    label = "budget (pages of 16 tokens)"
    return draw(rows, "budget", "mean", "line", "panel", x_label=label, panels=panels, lines=lines, stacked=True)


def paragraph(text: str) -> str:
    """Write a text in lines of 120 letters."""
    return textwrap.fill(" ".join(text.split()), width=120)


if __name__ == "__main__":
    app()
