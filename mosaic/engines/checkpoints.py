"""What can be known of a checkpoint before an engine loads it.

Engines load flipped bytes, and folders without a tokenizer, in silence; a full cache shows only once they started.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mosaic.core.errors import BackendError
from mosaic.engines.safetensors_header import read_header

MANIFEST = "SHA256SUMS"
"""As ``sha256sum *`` writes it: a digest, two spaces and a file name a line."""
INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Files of which one group is enough."""
OTHER_NAMES = {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size"}
"""What some configurations say for the usual names."""
SMALL_BYTES = 64 * 2**20
"""Weights up to this size are hashed for the fingerprint even without a manifest."""
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class CheckpointError(BackendError):
    """A checkpoint is absent, incomplete or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that passed the checks."""

    path: Path
    fingerprint: str
    """Of everything in it that decides a response, as far as it could be read cheaply."""
    context_tokens: int | None
    """Positions that the model was made for; None: its configuration does not say."""
    vocab_size: int
    weight_bytes: int
    """0 where no weights are loaded."""
    kv_values_per_token: int
    """Numbers that one token leaves in the KV cache of all layers."""
    head_dim: int
    num_attention_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCheckpoint:
    """A checkpoint that every machine must have, as the driver found it."""

    expert: str
    name: str
    """By which each machine finds it."""
    folder: Path | None
    """Where it lies if its name is no path."""
    path: Path
    """Where the driver has it."""
    fingerprint: str
    weights: bool
    """They are loaded."""
    tokenizer: bool
    """It is used."""


def find_checkpoint(name: str, folder: Path | None = None, *, weights: bool = True, tokenizer: bool = True) -> Path:
    """Find a checkpoint by path, below a folder, or by its Hugging Face name in the local cache.

    ``weights`` and ``tokenizer`` say what of it will be used, as in `check_checkpoint`.

    Raises
    ------
    CheckpointError
        If it is in none of these places; nothing is downloaded.
    """
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    repository = cache.expanduser() / f"models--{name.replace('/', '--')}"
    places = [Path(name).expanduser(), *([] if folder is None else [folder / name])]
    for place in places:
        if place.is_dir():
            return place.resolve()
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = repository / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    raise CheckpointError(
        f"checkpoint {name}: no such folder, and not in the cache {cache}; "
        f"give the folder, or fetch it first: hf download {name}{'' if weights or tokenizer else ' config.json'}"
    )


def check_checkpoint(path: Path, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Check that a folder can be loaded, and read what planning a session of it needs.

    Parameters
    ----------
    path
        The folder in Hugging Face format.
    weights
        Its weights are to be loaded (else config.json is enough).
    tokenizer
        Texts are to be read or written.

    Raises
    ------
    CheckpointError
        Naming the file and what is wrong with it.
    """
    config = read_config(path)
    files = _weight_files(path) if weights else ()
    if tokenizer and not any(all(_has_content(path / name) for name in group) for group in TOKENIZERS):
        raise CheckpointError(
            f"checkpoint {path}: no tokenizer; one of {', '.join('+'.join(group) for group in TOKENIZERS)} must be "
            "beside config.json"
        )
    digests = _check_manifest(path, weights=weights)
    text = config.get("text_config", config)
    heads = _whole(path, text, "num_attention_heads")
    head_dim = text.get("head_dim") or text.get("kv_channels") or _whole(path, text, "hidden_size") // heads
    kv_heads = _kv_heads(path, text, heads)
    return Checkpoint(
        path=path,
        fingerprint=_fingerprint(path, files, digests),
        context_tokens=text.get("max_position_embeddings") or text.get("seq_length"),
        vocab_size=_whole(path, text, "vocab_size"),
        weight_bytes=sum(file.stat().st_size for file in files),
        kv_values_per_token=2 * _whole(path, text, "num_hidden_layers") * kv_heads * head_dim,
        head_dim=head_dim,
        num_attention_heads=heads,
    )


def find_wanted(wanted: WantedCheckpoint) -> Path:
    """Find a checkpoint that the driver has on this machine, where its folder may have another name.

    Raises
    ------
    CheckpointError
        If it is not here, or is another one.
    """
    try:
        path = find_checkpoint(wanted.name, wanted.folder, weights=wanted.weights, tokenizer=wanted.tokenizer)
        found = check_checkpoint(path, weights=wanted.weights, tokenizer=wanted.tokenizer)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {wanted.expert}: {error}") from None
    if found.fingerprint != wanted.fingerprint:
        raise CheckpointError(f"has another {wanted.expert} in {path} than the driver in {wanted.path}")
    return path


def check_kv_memory(
    checkpoint: Checkpoint, *, kv_cache_bytes: int, context_tokens: int, block_size: int, dtype: str
) -> None:
    """Check that the KV cache holds at least one call of full length.

    Raises
    ------
    CheckpointError
        If not: an engine would refuse to start, or preempt a call for ever.
    """
    num_blocks = -(-context_tokens // block_size)
    needed = num_blocks * block_size * checkpoint.kv_values_per_token * kv_value_bytes(dtype)
    if needed > kv_cache_bytes:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: one call of {context_tokens} tokens needs {needed / 2**20:.1f} MiB of KV "
            f"cache, there are {kv_cache_bytes / 2**20:.1f}; give more KV memory, or the expert fewer context_tokens"
        )


def kv_value_bytes(dtype: str) -> int:
    """Count the bytes of a number in the KV cache; those of types that a checkpoint names itself have two."""
    return _VALUE_BYTES.get(dtype, 2)


def write_manifest(path: Path) -> Path:
    """Write the digests of a checkpoint's files beside them, for later checks."""
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != MANIFEST)
    manifest = path / MANIFEST
    lines = [f"{_sha256(path / name)}  {name}\n" for name in names]
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint's config.json.

    Raises
    ------
    CheckpointError
        If it is not there, or is none of a model.
    """
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path}: no such folder")
    config = read_json(path / "config.json")
    if not config.get("architectures"):
        raise CheckpointError(f"checkpoint {path / 'config.json'}: must name the model's architectures")
    return config


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is not there or holds none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: no such file") from None
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: not a JSON file ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {path}: must hold a JSON object, got {type(value).__name__}")
    return value


def _kv_heads(path: Path, config: Mapping[str, Any], heads: int) -> int:
    """Count the heads of keys and values: fewer than those of queries where these share them in groups."""
    if config.get("multi_query_attention"):
        return _whole(path, config, "multi_query_group_num")
    return config.get("num_key_value_heads") or heads


def _whole(path: Path, config: Mapping[str, Any], name: str) -> int:
    """Read a number under its usual name or the one that GLM-4 and Exaone have for it."""
    key = next((key for key in (name, OTHER_NAMES.get(name, name)) if config.get(key) is not None), name)
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"checkpoint {path / 'config.json'}: {key} must be a whole number above 0, got {value!r}")
    return value


def _weight_files(path: Path) -> tuple[Path, ...]:
    index = path / INDEX
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"checkpoint {index}: weight_map must name the file of each tensor")
        files = tuple(path / name for name in sorted({_own_name(index, name) for name in places.values()}))
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise CheckpointError(f"checkpoint {path}: {len(missing)} of {len(files)} shards are missing: {missing}")
        headers = {file.name: _header(file) for file in files}
        for tensor, name in places.items():
            if tensor not in headers[name]:
                raise CheckpointError(f"checkpoint {path / name}: tensor {tensor} of the index is not in it")
        return files
    files = tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise CheckpointError(f"checkpoint {path}: no weights; model.safetensors or {INDEX} must be there")
    for file in files:
        _header(file)
    return files


def _header(file: Path) -> Mapping[str, Any]:
    try:
        return read_header(file)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {file}: {error}; fetch or copy it again") from None


def _check_manifest(path: Path, *, weights: bool) -> Mapping[str, str]:
    """Compare the files with their digests; empty where there is no manifest."""
    manifest = path / MANIFEST
    if not manifest.exists():
        return {}
    digests: dict[str, str] = {}
    for line in manifest.read_text(encoding="utf-8").splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise CheckpointError(f"checkpoint {manifest}: lines must be a SHA-256 digest and a name, got {line!r}")
        digests[_own_name(manifest, name)] = digest
    for name, digest in digests.items():
        if name.endswith(".safetensors") and not weights:
            continue
        if not (path / name).exists():
            raise CheckpointError(f"checkpoint {path / name}: no such file, and {MANIFEST} names it")
        if _sha256(path / name) != digest:
            raise CheckpointError(
                f"checkpoint {path / name}: its bytes are not those of {MANIFEST}; fetch or copy it again"
            )
    return digests


def _own_name(file: Path, name: str) -> str:
    """Check that a file of a checkpoint names another one beside it, and nothing elsewhere on this machine."""
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
        raise CheckpointError(f"checkpoint {file}: must name files beside it, got {name!r}")
    return name


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _sha256(file: Path) -> str:
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, size: int, modified_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(path: Path, weights: Sequence[Path], digests: Mapping[str, str]) -> str:
    total = hashlib.blake2b(digest_size=16)
    small = sum(file.stat().st_size for file in weights) <= SMALL_BYTES
    beside = [file for file in path.iterdir() if file.suffix in (".json", ".jinja", ".model", ".txt", ".py")]
    for file in sorted({*beside, *weights}):
        if file in weights and not small:
            state = digests.get(file.name) or json.dumps([file.stat().st_size, read_header(file)], sort_keys=True)
        else:
            state = _sha256(file)
        total.update(f"{file.name} {state}\n".encode())
    return total.hexdigest()
