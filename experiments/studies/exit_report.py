"""What the report on early exits is made of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.exit_replay import (
    Estimate,
    Floats,
    Heard,
    Replayed,
    auc_of,
    bootstrap,
    read_run,
    replay,
    signals,
)
from experiments.studies.exit_worlds import (
    ACCEPTED_FRAC,
    ADVERSARIAL,
    BENCHMARKS,
    TOPOLOGIES,
    calibrated_on,
    draw_batch,
    draw_population,
    go_through,
    harmful_frac,
)
from experiments.studies.gate_populations import Population
from experiments.studies.gate_trials import simulate_calibrations
from mosaic.comparison.estimate import estimate
from mosaic.config.engines import CPU_KV_CACHE_BYTES
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.engines.token_embeddings import TokenEmbeddings
from mosaic.pipelines.exits import Agreed, Exit, FasterMoa, Order
from mosaic.pipelines.exits.faster_moa import Embed

CONTEXT_TOKENS = 512
"""Of the tiny pool."""
NUM_DRAWS = 3
"""Of Faster-MoA's rule, on the same answers."""
NUM_CALIBRATION = 2_000
ACCEPTED_FRACS = (ACCEPTED_FRAC, 0.02, 0.05)
VARIANTS: Mapping[str, dict[str, Any]] = {
    "faster_moa": {},
    "faster_moa, exponent tau": {"exponent": "tau"},
    "faster_moa, no diagonal": {"diagonal": False},
}


class WorldRule(NamedTuple):
    """A rule in a world; values with their 95% intervals."""

    world: str
    topology: str
    rule: str
    saved: tuple[float, float, float]
    change: tuple[float, float, float]


def probe(run: Path, embedder: Path) -> tuple[list[Heard], dict[str, Estimate], Embed]:
    """Ask of every signal how well it tells right exits from wrong ones."""
    loading = ModelLoading(device=Device.CPU, dtype="float32")
    options = EngineOptions(block_size=32, kv_cache_memory_bytes=CPU_KV_CACHE_BYTES, loading=loading)
    embed = TokenEmbeddings(embedder.resolve(), CONTEXT_TOKENS, options)
    heard = read_run(run)
    right = np.array([one.is_right((0, 1)) for one in heard])
    return heard, {name: auc_of(scores, right) for name, scores in signals(heard, embed).items()}, embed


def replayed_rows(heard: Sequence[Heard], embed: Embed) -> dict[str, dict[str, Estimate]]:
    """Replay rules on what was answered."""
    sims: Mapping[str, dict[str, Any]] = {
        ", answers": {"similarity": "answers"},
        ", embeddings": {"similarity": "embeddings", "embed": embed},
    }
    rules: dict[str, list[Exit | None]] = {"never": [None], "agreement": [Agreed()]}
    for name, settings in VARIANTS.items():
        for sim, more in sims.items():
            rules[f"{name}{sim}"] = [
                FasterMoa(seed=seed, order=Order.SLOT, **settings, **more) for seed in range(NUM_DRAWS)
            ]
    made = {name: replay(heard, given) for name, given in rules.items()}
    made["random, as often as printed"] = _at_random(heard, made["faster_moa, embeddings"])
    whole = made["never"].right_frac
    return {
        name: {
            "saved": _mean(of.saved_frac),
            "accuracy": _mean(of.right_frac),
            "change": _mean(of.right_frac - whole),
        }
        for name, of in made.items()
    }


def _at_random(heard: Sequence[Heard], like: Replayed) -> Replayed:
    """Stop after one agent or hear all, whatever they said, such that as many calls are saved as by another rule."""
    most = 1 - 1 / len(heard[0].records)
    share = float(like.saved_frac.mean()) / most
    one, all_of_them = (np.array([q.is_right(range(n)) for q in heard]) for n in (1, len(heard[0].records)))
    return Replayed(np.full(len(heard), share * most), share * one + (1 - share) * all_of_them)


def _mean(values: Floats) -> Estimate:
    return bootstrap(len(values), lambda places: float(values[places].mean()))


def online_rows(never: Path, online: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Compare real runs with the one in which everybody answered."""
    import pyarrow.parquet as pq

    def answers(folder: Path) -> dict[str, float]:
        return {row["question"]: float(row["correct"]) for row in pq.read_table(folder / "answers.parquet").to_pylist()}

    whole = answers(never)
    rows = {}
    for name, folder in {"never": never, **online}.items():
        right = answers(folder)
        calls = [row for row in pq.read_table(folder / "calls.parquet").to_pylist() if _decides(row)]
        skipped = len(right) - len({row["question"] for row in calls if row["node"] == "aggregate"})
        conditions, summary = (json.loads((folder / file).read_text()) for file in ("meta.json", "summary.json"))
        rows[name] = {
            "reacting_frac": conditions["reacting_s"] / summary["end_to_end_s"],
            "num_finished": sum(row["status"] == "finished" for row in calls),
            "num_cancelled": sum(row["status"] == "cancelled" for row in calls),
            "output_tokens": sum(row["output_tokens"] for row in calls),
            "skip_frac": skipped / len(right),
            "accuracy": _mean(np.array([right[key] for key in whole])),
            "change": _mean(np.array([right[key] - whole[key] for key in whole])),
        }
    return rows


def _decides(row: Mapping[str, Any]) -> bool:
    """Tell whether a call is no lesson: the aggregator without one of the responses."""
    return bool(row["node"] != "aggregate" or row["slot"] == 0)


def promises(
    num_seeds: int, num_questions: int, num_calibrations: int
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Population]]:
    """Calibrate the exit many times in every world; what was drawn comes along."""
    rows, populations = [], {}
    for topology in TOPOLOGIES:
        for world in (*BENCHMARKS, ADVERSARIAL):
            population = draw_population(world, topology, range(num_seeds), num_questions)
            populations[world, topology] = population
            accepted = ACCEPTED_FRACS if world != ADVERSARIAL else (ACCEPTED_FRAC,)
            rows += [
                {
                    "world": world,
                    "topology": topology,
                    "accepted_loss_frac": of.accepted_loss_frac,
                    "num_questions": of.num_questions,
                    "num_calibrations": of.num_calibrations,
                    "num_broken": of.num_broken,
                    "max_broken": of.max_broken,
                    "skip_frac": of.skip_frac,
                }
                for of in simulate_calibrations(population, accepted, NUM_CALIBRATION, num_calibrations)
            ]
    return rows, populations


def world_rows(
    populations: Mapping[tuple[str, str], Population], num_seeds: int, num_questions: int
) -> list[WorldRule]:
    """Compare rules in every world, on other questions than were drawn to calibrate."""
    rows = []
    for (world, topology), population in populations.items():
        seeds = range(1000, 1000 + num_seeds)
        right_frac = harmful_frac(topology, range(num_seeds), 500) if world == ADVERSARIAL else None
        rules: dict[str, Exit] = {"agreement": Agreed(), "calibrated, 1 pp": calibrated_on(population, NUM_CALIBRATION)}
        rules |= {name: FasterMoa(seed=0, order=Order.SLOT, **settings) for name, settings in VARIANTS.items()}
        saved: dict[str, list[float]] = {name: [] for name in rules}
        change: dict[str, list[float]] = {name: [] for name in rules}
        for seed in seeds:
            batch = draw_batch(world, topology, seed, num_questions, right_frac)
            whole = float(np.mean([one.is_right for one in go_through(batch, None)]))
            for name, rule in rules.items():
                passed = go_through(batch, rule)
                saved[name].append(1 - sum(one.num_calls for one in passed) / sum(one.num_whole for one in passed))
                change[name].append(float(np.mean([one.is_right for one in passed])) - whole)
        rows += [WorldRule(world, topology, name, _over(saved[name]), _over(change[name])) for name in rules]
    return rows


def _over(values: Sequence[float]) -> tuple[float, float, float]:
    found = estimate(values)
    assert found.low is not None, "several seeds"
    assert found.high is not None
    return found.mean, found.low, found.high
