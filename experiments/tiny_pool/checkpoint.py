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

from experiments.tiny_pool.fast_tokenizer import write_tokenizer
from experiments.tiny_pool.model import NORM_EPSILON, ROPE_THETA, TinyModel
from experiments.tiny_pool.prompts import SHAPE
from experiments.tiny_pool.tokenizer import TinyTokenizer
from mosaic.core.errors import BackendError
from mosaic.engines.checkpoints import MANIFEST as CHECKSUMS
from mosaic.engines.checkpoints import check_checkpoint, write_manifest

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"


def write_checkpoint(
    folder: Path, model: TinyModel, tokenizer: TinyTokenizer, *, context_tokens: int, manifest: Mapping[str, Any]
) -> None:
    """Write a checkpoint; what stood in its place before goes only when it is complete.

    Parameters
    ----------
    folder
        To write; a run that is killed leaves it as it was.
    model, tokenizer
        What to write.
    context_tokens
        Positions that the model is for.
    manifest
        How it was made.
    """
    from safetensors.torch import save_file

    with appearing(folder) as draft:
        tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        _write_json(draft / "config.json", _config(tokenizer, context_tokens))
        special = {"eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
        _write_json(draft / "generation_config.json", special)
        write_tokenizer(draft, tokenizer, context_tokens)
        _write_json(draft / MANIFEST, manifest)
        write_manifest(draft)


def load_model(folder: Path) -> TinyModel:
    """Read the model of a checkpoint."""
    from safetensors.torch import load_file

    model = TinyModel()
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})
    return model


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


def _config(tokenizer: TinyTokenizer, context_tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": None,
        "dtype": "float32",
        "eos_token_id": tokenizer.end_id,
        "head_dim": SHAPE.head_dim,
        "hidden_act": "silu",
        "hidden_size": SHAPE.hidden_size,
        "intermediate_size": SHAPE.ffn_size,
        "max_position_embeddings": context_tokens,
        "mlp_bias": False,
        "num_attention_heads": SHAPE.num_query_heads,
        "num_hidden_layers": SHAPE.num_layers,
        "num_key_value_heads": SHAPE.num_kv_heads,
        "pad_token_id": tokenizer.pad_id,
        "rms_norm_eps": NORM_EPSILON,
        "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        "tie_word_embeddings": SHAPE.tied_embeddings,
        "vocab_size": SHAPE.vocab_size,
    }


def write_json_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file that is either the old one or the new one, whenever the process is killed."""
    draft = path.with_name(f"{_UNFINISHED}{path.name}")
    _write_json(draft, value)
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.replace(path)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return sha256(file.read_bytes()).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
