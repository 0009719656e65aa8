"""Profile the KV heads of a Llama-type checkpoint: which of them are unstable, as sparse KV caches need to know.

    python experiments/measure_heads.py CHECKPOINT

Writes a list of unstable heads for each of two sets of documents, and how stable heads are, into
results/multirun/flexicache unless --out names a folder.
"""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import polars as pl
import typer

from experiments.kv_heads.texts import code, documents, prose
from experiments.lab.tables import markdown, write_table
from mosaic.config.errors import exit_with_message
from mosaic.core.workload import SparseKv
from mosaic.engines.sparse_attention import UnstableHeads, write_heads
from mosaic.report.run_folder import own_folder, write_file

if TYPE_CHECKING:
    from experiments.kv_heads.profile import HeadProfile

PROMPT_TOKENS = 1024
NUM_PROFILED = 4
"""Documents of a set."""
PROFILE_STEPS = 272
"""Decode steps of a document: 17 rankings."""
RANKED_PAGES = 16
"""Best pages whose changes make a head unstable."""
OUT = own_folder("flexicache")
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
PUBLISHED_OVERLAP_FRAC = 0.83
"""FlexiCache (arXiv 2511.00868): share of the unstable heads that another task's documents find too."""
PUBLISHED_PROMOTED_FRAC = (0.23, 0.35)
"""Pages of the best ones that are new at a ranking, least and most over its models and tasks."""


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder in Hugging Face's format, or a GGUF file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the files.")] = OUT,
) -> None:
    """Profile the KV heads on two sets of documents; write a list of unstable heads for each."""
    with exit_with_message():
        profile_sets(checkpoint, out)


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
    low, high = PUBLISHED_PROMOTED_FRAC
    about = f"""
        Stability of a head: the share of its best {RANKED_PAGES} pages that are still among them 16 steps later.
        Unstable are the quarter of all heads that most documents of a set count among their least stable ones. Each
        document: a prompt of {PROMPT_TOKENS:,} tokens, then {PROFILE_STEPS} teacher-forced decode steps, dense. Recall
        and attention are of pages ranked at every step."""
    shared = f"""
        Unstable heads that both sets name: {shared_frac:.2f} of them (published, between tasks of a larger model:
        {PUBLISHED_OVERLAP_FRAC:.2f}; by chance {chance_frac:.2f})."""
    shares = ", ".join(f"{row['promoted_stable']:.0%} ({name})" for name, row in averages.items())
    promoted = f"""
        Promoted at a ranking, stable heads: {shares} of the best pages (published: {low:.0%} to {high:.0%})."""
    lines = [
        {"mean over documents": label}
        | {f"{name}, {counts[name]} documents": f"{row[key]:.1%}" for name, row in averages.items()}
        for key, label in SHOWN.items()
    ]
    return "\n\n".join(["## Heads", *map(paragraph, (about, shared, promoted)), markdown(lines)]) + "\n"


def paragraph(text: str) -> str:
    """Write a text in lines of 120 letters."""
    return textwrap.fill(" ".join(text.split()), width=120)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
