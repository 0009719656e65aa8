"""The study of a checkpoint's KV heads: profiles of two document sets, then quality on texts of neither."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from experiments.kv_heads.llama import Llama
from experiments.kv_heads.profile import HeadProfile, consensus, profile_document, shared_frac
from experiments.kv_heads.quality import Quality, measure_text
from experiments.kv_heads.texts import code, documents, prose
from mosaic.core.errors import BackendError
from mosaic.core.json_file import read_json
from mosaic.core.sparse_kv import SparseKv
from mosaic.engines.head_lists import UnstableHeads, write_heads

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


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """Load a checkpoint on one core."""
    torch.set_num_threads(1)
    return Llama(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


def profile_sets(folder: Path, out: Path) -> None:
    """Profile both sets, and write a head list of each and what was found."""
    model, tokenizer = load(folder)
    kv = SparseKv(budget_pages=RANKED_PAGES)
    found: dict[str, Any] = {"prompt_tokens": PROMPT_TOKENS, "steps": PROFILE_STEPS, "budget_pages": RANKED_PAGES}
    lists: dict[str, UnstableHeads] = {}
    for name, texts in SETS.items():
        tokens = documents(texts(), _encoder(tokenizer), NUM_PROFILED, PROMPT_TOKENS + PROFILE_STEPS)
        profiles = [profile_document(model, document, PROFILE_STEPS, kv) for document in tokens]
        lists[name] = consensus([profile.overlap for profile in profiles], kv)
        write_heads(out / f"heads_{name}.json", lists[name])
        found[name] = [_summary(profile, lists[name]) for profile in profiles]
        print(f"profiled {len(profiles)} documents of {name}", flush=True)
    heads = model.num_layers * model.num_kv_heads
    found["overlap_frac"] = shared_frac(*lists.values())
    found["random_overlap_frac"] = kv.num_unstable(heads) / heads
    (out / "heads.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _encoder(tokenizer: Tokenizer) -> Any:
    return lambda text: tokenizer.encode(text).ids


def _summary(profile: HeadProfile, unstable: UnstableHeads) -> dict[str, float]:
    """Take means over heads; pages are promoted in stable heads."""
    stable = torch.ones_like(profile.overlap, dtype=torch.bool)
    for layer, head in unstable.pairs:
        stable[layer, head] = False
    values = {
        "overlap_stable": profile.overlap[stable],
        "overlap_unstable": profile.overlap[~stable],
        "promoted_stable": profile.promoted[stable],
        "promoted_unstable": profile.promoted[~stable],
        "recall": profile.recall,
        "attention_mass": profile.mass,
    }
    return {name: round(value.mean().item(), 4) for name, value in values.items()}


def load_heads(path: Path) -> UnstableHeads:
    """Read a head list, of whatever model."""
    return read_json(path, UnstableHeads, "--heads", BackendError)


def score_texts(folder: Path, heads: UnstableHeads, table: Path) -> None:
    """Score texts that no profile has seen, half of each set; a text that the table has already is not scored again."""
    model, tokenizer = load(folder)
    num_tokens = PROMPT_TOKENS + SCORED_TOKENS + 1
    num_each = NUM_TEXTS // len(SETS)
    texts = [
        tokens
        for source in SETS.values()
        for tokens in documents(source(), _encoder(tokenizer), NUM_PROFILED + num_each, num_tokens)[NUM_PROFILED:]
    ]
    known = {row.text for row in read_qualities(table)} if table.exists() else set()
    for number in sorted(set(range(len(texts))) - known, key=lambda text: (text % num_each, text)):
        rows = measure_text(model, number, texts[number], SCORED_TOKENS, heads, BUDGETS)
        append_qualities(table, rows)
        print(f"scored text {number}", flush=True)


def append_qualities(table: Path, rows: Sequence[Quality]) -> None:
    """Add rows to a table."""
    names = [field.name for field in fields(Quality)]
    is_new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            cells = asdict(row)
            writer.writerow({key: f"{cell:.6g}" if isinstance(cell, float) else cell for key, cell in cells.items()})


def read_qualities(table: Path) -> list[Quality]:
    """Read a table."""
    with table.open(encoding="utf-8", newline="") as file:
        return [
            Quality(
                text=int(row["text"]), budget_pages=int(row["budget_pages"]), protected=row["protected"],
                nll=float(row["nll"]), agreement_frac=float(row["agreement_frac"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
