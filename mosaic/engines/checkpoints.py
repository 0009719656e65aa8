"""Checks a checkpoint before an engine loads it.

Engines silently load files with flipped bytes and folders without a tokenizer; a full cache shows only after they have
started.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mosaic.core.errors import BackendError

MANIFEST = "SHA256SUMS"
"""In the format of ``sha256sum *``: one line per file, with a digest, two spaces and a file name."""
INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Groups of files; one group is enough."""
OTHER_NAMES = {
    "num_hidden_layers": "num_layers",
    "vocab_size": "padded_vocab_size",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "seq_length",
    "head_dim": "kv_channels",
}
"""Names that some configurations use instead of the usual ones."""
SMALL_BYTES = 64 * 2**20
"""Weights up to this size are hashed for the fingerprint even without a manifest."""
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class CheckpointError(BackendError):
    """A checkpoint is absent, incomplete or damaged."""


class ModelConfig:
    """A checkpoint's config.json; for a multimodal model, its text part has the dimensions.

    Raises
    ------
    CheckpointError
        If it does not exist, or is not that of a model.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {path}: no such folder")
        self._file = path / "config.json"
        whole = read_json(self._file)
        if not whole.get("architectures"):
            raise CheckpointError(f"checkpoint {self._file}: must name the model's architectures")
        text = whole.get("text_config", whole)
        self._values: dict[str, Any] = {**whole, **text}
        named = (part.get(key) for part in (text, whole) for key in ("dtype", "torch_dtype"))
        self._type = next(filter(None, named), None)

    def get(self, name: str) -> Any:
        """Read a value under its usual name or the name that GLM-4 and Exaone use."""
        value = self._values.get(name)
        return self._values.get(OTHER_NAMES.get(name, name)) if value is None else value

    def whole(self, name: str) -> int:
        """Read a whole number above 0.

        Raises
        ------
        CheckpointError
            If the value is not one.
        """
        value = self.get(name)
        if type(value) is not int or value < 1:
            other = OTHER_NAMES.get(name, name)
            key = other if self._values.get(name) is None and self._values.get(other) is not None else name
            raise CheckpointError(f"checkpoint {self._file}: {key} must be a whole number above 0, got {value!r}")
        return value

    @property
    def num_query_heads(self) -> int:
        return self.whole("num_attention_heads")

    @property
    def num_kv_heads(self) -> int:
        """Fewer than query heads if groups of these share them."""
        if self.get("multi_query_attention"):
            return self.whole("multi_query_group_num")
        return self.get("num_key_value_heads") or self.num_query_heads

    @property
    def head_dim(self) -> int:
        return self.get("head_dim") or self.whole("hidden_size") // self.num_query_heads

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight in the type that it names."""
        return value_bytes(str(self._type).removeprefix("torch."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that passed the checks."""

    path: Path
    fingerprint: str
    """Hash of all its content that responses depend on and that can be read cheaply."""
    weight_bytes: int
    """0 if no weights are loaded."""
    context_tokens: int | None
    """Positions that the model was made for; None: its configuration has no such entry."""
    vocab_size: int
    head_dim: int
    kv_values_per_token: int
    """Numbers that one token adds to the KV cache of all layers."""
    config: ModelConfig


def find_checkpoint(name: str, folder: Path | None = None, *, weights: bool = True, tokenizer: bool = True) -> Path:
    """Find a checkpoint by path, below a folder, or by its Hugging Face name in the local cache.

    ``weights`` and ``tokenizer`` select the parts that are needed, as in `check_checkpoint`.

    Raises
    ------
    CheckpointError
        If it is in none of these folders; nothing is downloaded.
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
        Whether its weights are loaded (otherwise config.json is enough).
    tokenizer
        Whether texts are read or written.

    Raises
    ------
    CheckpointError
        Naming the file and its error.
    """
    config = ModelConfig(path)
    files = _weight_files(path) if weights else ()
    if tokenizer and not any(all(_has_content(path / name) for name in group) for group in TOKENIZERS):
        raise CheckpointError(
            f"checkpoint {path}: no tokenizer; one of {', '.join('+'.join(group) for group in TOKENIZERS)} must be "
            "beside config.json"
        )
    digests = _check_manifest(path, weights=weights)
    return Checkpoint(
        path=path,
        fingerprint=_fingerprint(path, files, digests),
        weight_bytes=sum(file.stat().st_size for file in files),
        context_tokens=config.get("max_position_embeddings"),
        vocab_size=config.whole("vocab_size"),
        head_dim=config.head_dim,
        kv_values_per_token=2 * config.whole("num_hidden_layers") * config.num_kv_heads * config.head_dim,
        config=config,
    )


def check_kv_memory(
    checkpoint: Checkpoint, *, kv_cache_bytes: int, context_tokens: int, block_size: int, dtype: str
) -> None:
    """Check that the KV cache holds at least one call of full length.

    Raises
    ------
    CheckpointError
        If not: an engine would refuse to start, or preempt a call forever.
    """
    num_blocks = -(-context_tokens // block_size)
    needed = num_blocks * block_size * checkpoint.kv_values_per_token * value_bytes(dtype)
    if needed > kv_cache_bytes:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: one call of {context_tokens} tokens needs {needed / 2**20:.1f} MiB of KV "
            f"cache, there are {kv_cache_bytes / 2**20:.1f}; give more KV memory, or the expert fewer context_tokens"
        )


def value_bytes(dtype: str) -> int:
    """Return the bytes of a number; types named by a checkpoint itself have two."""
    return _VALUE_BYTES.get(dtype, 2)


def write_manifest(path: Path) -> Path:
    """Write the digests of a checkpoint's files next to them, for later checks."""
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != MANIFEST)
    manifest = path / MANIFEST
    lines = [f"{_sha256(path / name)}  {name}\n" for name in names]
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises
    ------
    CheckpointError
        If the file does not exist or holds no object.
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
        tensors = {file.name: _tensors(file) for file in files}
        for tensor, name in places.items():
            if tensor not in tensors[name]:
                raise CheckpointError(f"checkpoint {path / name}: tensor {tensor} of the index is not in it")
        return files
    files = tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise CheckpointError(f"checkpoint {path}: no weights; model.safetensors or {INDEX} must be there")
    for file in files:
        _tensors(file)
    return files


def _tensors(file: Path) -> Collection[str]:
    """List the tensors of a file; a file that was cut off, or does not match its header, is refused."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return frozenset(opened.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {file}: {error}; fetch or copy it again") from None


def _check_manifest(path: Path, *, weights: bool) -> Mapping[str, str]:
    """Compare the files with their digests; empty without a manifest."""
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
    """Check that a file of a checkpoint names another one next to it, and no other file of this machine."""
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
        is_read = small or file not in weights
        state = _sha256(file) if is_read else digests.get(file.name) or _header_of(file)
        total.update(f"{file.name} {state}\n".encode())
    return total.hexdigest()


def _header_of(file: Path) -> str:
    """Return a safetensors file's header and size."""
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    return f"{file.stat().st_size} {hashlib.sha256(header).hexdigest()}"
