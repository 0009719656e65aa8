"""Checkpoint folders of the tiny pool: Hugging Face format, with a manifest, complete or not there at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from experiments.tiny_pool.tokenizer import write_tokenizer
from mosaic.core.errors import BackendError
from mosaic.engines.checkpoints import MANIFEST as CHECKSUMS
from mosaic.engines.checkpoints import check_checkpoint, write_manifest
from mosaic.report.run_folder import write_file

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"


def write_checkpoint(folder: Path, model: LlamaForCausalLM, manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint with how it was made; what stood in its place before goes only when it is complete."""
    with appearing(folder) as draft:
        model.save_pretrained(draft)
        write_tokenizer(draft, model.config.max_position_embeddings)
        write_file(draft, MANIFEST, json_bytes(manifest))
        write_manifest(draft)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read how a checkpoint was made; None where there is none, or where a file is not as it was written."""
    try:
        check_checkpoint(folder)
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (BackendError, OSError, ValueError):
        return None
    return manifest if (folder / CHECKSUMS).is_file() else None


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes its final name, and the place of an older one, once that is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)  # a temporary folder is its owner's alone
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_unfinished(pool: Path) -> None:
    """Remove what a killed run left half-made."""
    for draft in pool.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return sha256(file.read_bytes()).hexdigest()


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Write JSON, a key a line."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
