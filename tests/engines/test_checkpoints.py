"""What is wrong with a checkpoint is said before anything loads it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mosaic.engines.checkpoints import (
    INDEX,
    MANIFEST,
    CheckpointError,
    check_checkpoint,
    check_kv_memory,
    find_checkpoint,
    write_manifest,
)
from tests.engines.tiny_checkpoint import CONFIG, CONTEXT, tiny_shape, write_safetensors, write_tiny_checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def change_config(path: Path, **changes: object) -> None:
    kept = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (path / "config.json").write_text(json.dumps(kept))


def split_into_shards(path: Path) -> None:
    """Spread the tensors over two files with an index."""
    with safe_open(path / "model.safetensors", framework="numpy") as file:
        names = list(file.keys())
    (path / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        write_safetensors(path / shard, {name: np.zeros((2, 3)) for name in part})
        places |= dict.fromkeys(part, shard)
    (path / INDEX).write_text(json.dumps({"weight_map": places}))


def test_a_whole_checkpoint_passes_and_says_what_planning_needs(tiny):
    checkpoint = check_checkpoint(tiny)
    assert (checkpoint.context_tokens, checkpoint.vocab_size, checkpoint.head_dim) == (CONTEXT, 256, 32)
    assert checkpoint.kv_values_per_token * 4 == tiny_shape().kv_bytes_per_token()
    assert tiny_shape().weight_bytes < checkpoint.weight_bytes < tiny_shape().weight_bytes + 4096


def test_dimensions_of_a_model_of_several_kinds_are_those_of_its_text_part(tiny):
    change_config(tiny, hidden_size="absent", num_attention_heads="absent", text_config={**CONFIG, "vocab_size": 99})
    assert check_checkpoint(tiny).vocab_size == 99


ABSENT = dict.fromkeys(
    ("num_hidden_layers", "vocab_size", "head_dim", "num_key_value_heads", "max_position_embeddings"), "absent"
)
GLM = ABSENT | {
    "num_layers": 40, "padded_vocab_size": 151552, "hidden_size": 5120, "num_attention_heads": 32,
    "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 131072,
}  # fmt: skip
EXAONE = {"num_hidden_layers": "absent", "num_layers": 3, "num_key_value_heads": 2}
LEFT_OUT = dict.fromkeys(("head_dim", "num_key_value_heads", "max_position_embeddings"), "absent")


@pytest.mark.parametrize(
    ("changes", "kv_values", "vocab_size", "context_tokens", "head_dim"),
    [
        (GLM, 2 * 40 * 2 * 128, 151552, 131072, 128),
        (GLM | {"multi_query_attention": False}, 2 * 40 * 32 * 128, 151552, 131072, 128),
        (EXAONE, 2 * 3 * 2 * 32, 256, CONTEXT, 32),
        (LEFT_OUT, tiny_shape().kv_bytes_per_token() // 4, 256, None, 32),
    ],
)
def test_other_names_are_understood_and_absent_heads_follow_from_others(
    tiny, changes, kv_values, vocab_size, context_tokens, head_dim
):
    change_config(tiny, **changes)
    found = check_checkpoint(tiny)
    assert (found.kv_values_per_token, found.vocab_size) == (kv_values, vocab_size)
    assert (found.context_tokens, found.head_dim) == (context_tokens, head_dim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (GLM | {"num_layers": 0}, "config.json: num_layers must be a whole number above 0, got 0"),
        (GLM | {"multi_query_group_num": None}, "multi_query_group_num must be a whole number above 0, got None"),
        ({"architectures": "absent"}, "config.json: must name the model's architectures"),
        ({"vocab_size": 0}, "config.json: vocab_size must be a whole number above 0, got 0"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers must be a whole number above 0, got None"),
        ("{", "config.json: not a JSON file"),
        ("[1]", "config.json: must hold a JSON object, got list"),
    ],
)
def test_a_configuration_that_is_incomplete_is_refused(tiny, changes, message):
    if isinstance(changes, str):
        (tiny / "config.json").write_text(changes)
    else:
        change_config(tiny, **changes)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(tiny)


def test_absent_files_are_named(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        check_checkpoint(tmp_path / "nothing")
    (tiny / "model.safetensors").rename(tiny / "model.bin")
    with pytest.raises(CheckpointError, match="no weights; model.safetensors"):
        check_checkpoint(tiny)
    (tiny / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json: no such file"):
        check_checkpoint(tiny)


def test_a_tokenizer_must_be_there_if_texts_are_read(tiny):
    (tiny / "tokenizer.json").write_text("")
    with pytest.raises(CheckpointError, match="no tokenizer; one of tokenizer.json, .*vocab.json.merges.txt"):
        check_checkpoint(tiny)
    assert check_checkpoint(tiny, tokenizer=False)
    (tiny / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        check_checkpoint(tiny)
    (tiny / "merges.txt").write_text("#")
    assert check_checkpoint(tiny)


def test_dummy_weights_need_a_configuration_only(tiny):
    for file in tiny.iterdir():
        if file.name != "config.json":
            file.unlink()
    assert check_checkpoint(tiny, weights=False, tokenizer=False).weight_bytes == 0


def with_header(header: object, num_data_bytes: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_data_bytes)


def tensor(start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": (2, 3), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda whole, kept=kept: whole[:kept] for kept in (0, 7, 8, 500, -4096, -1)),
        lambda whole: with_header({"a": tensor(0, 24)}, 25),
        lambda whole: with_header({"a": tensor(0, 24), "b": tensor(30, 54)}, 54),
        lambda whole: with_header({"a": tensor(0, 24), "b": tensor(20, 44)}, 44),
        lambda whole: with_header({"a": tensor(0, 20)}, 20),
        lambda whole: with_header({"a": 3}, 0),
        lambda whole: with_header([1], 0),
    ],
)
def test_weights_that_are_cut_off_or_contradict_their_header_are_refused(tiny, damage):
    file = tiny / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*fetch or copy it again"):
        check_checkpoint(tiny)


def test_all_shards_of_an_index_must_be_there_and_hold_their_tensors(tiny):
    split_into_shards(tiny)
    assert check_checkpoint(tiny).weight_bytes > 0
    index = json.loads((tiny / INDEX).read_text())
    lost = {**index["weight_map"], "model.lost.weight": "model-00001-of-00002.safetensors"}
    (tiny / INDEX).write_text(json.dumps({"weight_map": lost}))
    with pytest.raises(CheckpointError, match="00001-of-00002.safetensors: tensor model.lost.weight of the index"):
        check_checkpoint(tiny)
    (tiny / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: \['model-00002-of-00002"):
        check_checkpoint(tiny)
    (tiny / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map must name"):
        check_checkpoint(tiny)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/dev/zero", "..", ""])
def test_an_index_and_a_manifest_name_files_beside_them_only(tiny, name):
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="must name files beside it"):
        check_checkpoint(tiny)
    (tiny / INDEX).unlink()
    (tiny / MANIFEST).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(CheckpointError, match="must name files beside it"):
        check_checkpoint(tiny)


def test_flipped_bytes_are_found_where_there_is_a_manifest(tiny):
    flip_a_byte(tiny / "model.safetensors")
    assert check_checkpoint(tiny), "nothing tells it without a manifest"
    flip_a_byte(tiny / "model.safetensors")
    manifest = write_manifest(tiny)
    assert manifest.name == MANIFEST
    assert len(manifest.read_text().splitlines()) == 4
    assert check_checkpoint(tiny)
    flip_a_byte(tiny / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: its bytes are not those of SHA256SUMS"):
        check_checkpoint(tiny)
    assert check_checkpoint(tiny, weights=False)


def test_a_manifest_must_be_one_and_its_files_must_be_there(tiny):
    write_manifest(tiny)
    (tiny / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer_config.json: no such file, and SHA256SUMS names it"):
        check_checkpoint(tiny)
    (tiny / MANIFEST).write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="lines must be a SHA-256 digest and a name, got 'nonsense'"):
        check_checkpoint(tiny)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_fingerprint_follows_every_file_that_decides_a_response(tiny, tmp_path, name):
    same = write_tiny_checkpoint(tmp_path / "copy")
    before = check_checkpoint(tiny).fingerprint
    assert check_checkpoint(same).fingerprint == before
    other = write_tiny_checkpoint(tmp_path / "other", seed=1, chat_template="{{ messages }}")
    change_config(other, rope_theta=5e5)
    (same / name).write_bytes((other / name).read_bytes())
    assert check_checkpoint(same).fingerprint != before


def test_large_weights_are_told_by_their_header_or_their_manifest(tiny, monkeypatch):
    monkeypatch.setattr("mosaic.engines.checkpoints.SMALL_BYTES", 1)
    before = check_checkpoint(tiny).fingerprint
    flip_a_byte(tiny / "model.safetensors")
    assert check_checkpoint(tiny).fingerprint == before
    write_manifest(tiny)
    stamped = check_checkpoint(tiny).fingerprint
    flip_a_byte(tiny / "model.safetensors")
    write_manifest(tiny)
    assert check_checkpoint(tiny).fingerprint != stamped


def test_the_kv_cache_must_hold_one_call(tiny):
    checkpoint = check_checkpoint(tiny)
    needed = CONTEXT * tiny_shape().kv_bytes_per_token()
    sizes = {"context_tokens": CONTEXT, "block_size": 32, "dtype": "float32"}
    check_kv_memory(checkpoint, kv_cache_bytes=needed, **sizes)
    with pytest.raises(CheckpointError, match="one call of 512 tokens needs 1.0 MiB of KV cache, there are 1.0; give"):
        check_kv_memory(checkpoint, kv_cache_bytes=needed - 1, **sizes)
    with pytest.raises(CheckpointError, match="one call of 513 tokens"):
        check_kv_memory(checkpoint, kv_cache_bytes=needed, **{**sizes, "context_tokens": 513})
    check_kv_memory(checkpoint, kv_cache_bytes=needed // 2, **{**sizes, "dtype": "bfloat16"})


def test_checkpoints_are_found_by_path_below_a_folder_and_in_the_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert find_checkpoint(str(tiny)) == tiny
    assert find_checkpoint("tiny", tiny.parent) == tiny
    with pytest.raises(CheckpointError, match="org/model: no such folder, and not in the cache .*: hf download org/mo"):
        find_checkpoint("org/model")
    repository = tmp_path / "cache" / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc\n")
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint("org/model")
    write_tiny_checkpoint(repository / "snapshots" / "abc")
    assert find_checkpoint("org/model") == repository / "snapshots" / "abc"
