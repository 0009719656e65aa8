"""Run folders as a sweep leaves them, and the description of a figure over them."""

import json
from pathlib import Path
from typing import Any

import yaml

from experiments.analysis.ablation_spec import AblationSpec
from experiments.studies.ablation_spec import read_spec


def make_run(folder: Path, makespan_s: float | None = 100.0, *, seed: int = 0, scheduler: str = "ilp",
             config: dict[str, Any] | None = None, **summary: object) -> Path:  # fmt: skip
    """Write the two files of a run folder that a figure reads."""
    folder.mkdir(parents=True)
    content = {
        "workload": "w", "scheduler": scheduler, "backend": "sim", "gate": None, "costs": "paper", "seed": seed,
        "num_failed_calls": 0, "expert_makespan_s": makespan_s, "end_to_end_s": makespan_s, "gpu_idle_frac": 0.25,
        "num_loads": 6, "problem_fingerprint": f"{seed}",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(content | summary))
    base = {"seed": seed, "workload": {"name": "w"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(base | (config or {})))
    return folder


def make_points(root: Path, makespans_s: dict[tuple[str, object], list[float]]) -> list[Path]:
    """Write a run for each scheduler, each K and each seed."""
    return [
        make_run(root / f"{scheduler}-{k}-{seed}", value, seed=seed, scheduler=scheduler, config={"k": k})
        for (scheduler, k), values in makespans_s.items()
        for seed, value in enumerate(values)
    ]


def figure_config(**changes: Any) -> dict[str, Any]:
    """Describe a figure of the expert stage over K, a line for each of two schedulers."""
    return {
        "title": "A title",
        "about": "About it.",
        "finding": "It is so.",
        "x": {"key": "k", "label": "K"},
        "panels": [{"key": "expert_makespan_s", "label": "expert stage (s)"}],
        "lines": {"ILP": {"scheduler": "ilp"}, "round robin": {"scheduler": "round_robin"}},
        **changes,
    }


def make_spec(**changes: Any) -> AblationSpec:
    return read_spec(figure_config(**changes))
