"""A validation small enough for a test: 36 calls of three experts of the tiny pool, with random weights."""

import json
from pathlib import Path

from tests.engines.tiny_checkpoint import write_tiny_checkpoint

EXPERTS = ("TinySage", "TinyDart", "TinyOwl", "TinyFinch", "TinySwift")


def small_validation(folder: Path) -> list[str]:
    """Write what it reads into a folder; gives the arguments of the command, which writes into ``out`` there."""
    lines = [
        {"id": f"q{i}", "experts": [EXPERTS[i % 3]], "prompt_tokens": 20 + i % 7, "output_tokens": 3 + 5 * i % 17}
        for i in range(36)
    ]
    (folder / "calls.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    checkpoints = [
        f"pool.experts.{name}.checkpoint={write_tiny_checkpoint(folder / name, seed=ord(name[4]))}" for name in EXPERTS
    ]
    return [
        "workload=file", f"workload.path={folder / 'calls.jsonl'}", "pool=tiny", "cluster=local",
        "hardware=cpu_core", "backend=vllm", "backend.device=cpu", "backend.engine.max_num_seqs=4",
        "profile.sweep={shard_sizes: [4, 8], num_repeats: 1}", *checkpoints,
        "plans=round_robin,data_parallel", f"out={folder / 'out'}",
    ]  # fmt: skip
