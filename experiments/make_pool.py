"""Make the tiny pool: five experts that really answer and an aggregator, trained on the spot.

    python experiments/make_pool.py                 into checkpoints/tiny, which git ignores
    python experiments/make_pool.py --out FOLDER

Two processes with one thread each; the same seed gives the same bytes on the same machine. A pool that is complete with
these settings is not made again. If it was interrupted, only the missing models are made.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import typer

from experiments.tiny_pool.checkpoint import (
    MANIFEST,
    file_digest,
    json_bytes,
    read_manifest,
    remove_unfinished,
)
from experiments.tiny_pool.jobs import (
    WATCH_S,
    PoolSettings,
    answer,
    pool_settings,
    prepare_process,
    train_expert,
    train_judge,
    versions,
)
from experiments.tiny_pool.prompts import JUDGE
from experiments.tiny_pool.questions import Part, TinyQuestion, draw_questions
from experiments.tiny_pool.responses import EXPERTS
from experiments.tiny_pool.trials import (
    make_cases,
    measure_profiles,
)
from mosaic.config.errors import exit_with_message, stoppable
from mosaic.core.workload import ExpertName
from mosaic.engines.checkpoints import MANIFEST as CHECKSUMS
from mosaic.report.run_folder import write_file

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "checkpoints" / "tiny"
DEFAULTS = PoolSettings()
NUM_PROCESSES = 2
SKILL_PROFILES = "skill_profiles.json"
Result = TypeVar("Result")
NAMES = tuple(expert.name for expert in EXPERTS)
"""Those that reason come first: they take longest."""


def make_pool(out: Path, settings: PoolSettings) -> dict[str, Any]:
    """Make what is missing of a pool and return its manifest."""
    made = read_pool(out, settings)
    if made is not None:
        print(f"already complete with these settings: {out}")
        return made
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out)
    spawning = get_context("spawn")
    stopped = spawning.Event()
    workers = ProcessPoolExecutor(
        NUM_PROCESSES, mp_context=spawning, initializer=prepare_process, initargs=(os.getpid(), stopped)
    )
    try:
        _make(out, settings, workers)
    finally:
        stopped.set()  # whatever still trains then was not waited for: an error, or Ctrl-C
        workers.shutdown(cancel_futures=True)
    manifest = {
        "settings": pool_settings(settings),
        "checkpoints": {name: file_digest(out / name / CHECKSUMS) for name in (*NAMES, JUDGE.name)},
        "skill_profiles_sha256": file_digest(out / SKILL_PROFILES),
        "versions": versions(),
    }
    write_file(out, MANIFEST, json_bytes(manifest))
    return manifest


def read_pool(out: Path, settings: PoolSettings) -> dict[str, Any] | None:
    """Read the manifest of a pool; None unless it is complete, undamaged and made with these settings."""
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        intact = all(
            read_manifest(out / name) is not None and file_digest(out / name / CHECKSUMS) == digest
            for name, digest in manifest["checkpoints"].items()
        )
        intact = intact and file_digest(out / SKILL_PROFILES) == manifest["skill_profiles_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if intact and manifest.get("settings") == pool_settings(settings) else None


def _make(out: Path, settings: PoolSettings, workers: ProcessPoolExecutor) -> None:
    training = {workers.submit(train_expert, name, out, settings) for name in NAMES}
    while training:
        trained, training = wait(training, WATCH_S, FIRST_COMPLETED)
        for future in trained:
            print(future.result(), flush=True)
    seeds = count(1000 * settings.seed + 1)  # no two requests share one

    def ask(name: ExpertName, questions: Sequence[TinyQuestion]) -> Future[list[str]]:
        return workers.submit(answer, out / name, questions, next(seeds))

    calibration = draw_questions(settings.num_calibration, Part.CALIBRATION, settings.seed)
    examples = draw_questions(settings.num_cases, Part.TRAIN, settings.seed)
    said = {name: [ask(name, examples), ask(name, examples)] for name in NAMES}
    calibrated = {name: ask(name, calibration) for name in NAMES}
    profiles = measure_profiles(calibration, {name: awaited(future) for name, future in calibrated.items()})
    write_file(out, SKILL_PROFILES, json_bytes(profiles.scores))
    print(f"skills measured on {len(calibration)} questions: {out / SKILL_PROFILES}", flush=True)
    cases = make_cases(examples, {name: [awaited(future) for future in both] for name, both in said.items()})
    print(awaited(workers.submit(train_judge, out, settings, profiles, cases)), flush=True)


def awaited(future: Future[Result]) -> Result:
    """Wait for a result; a wait without an end may hear Ctrl-C only when it ends."""
    while not future.done():
        wait([future], WATCH_S)
    return future.result()


def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pool.")] = DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(help="Of questions, examples and weights.")] = DEFAULTS.seed,
    max_steps: Annotated[int | None, typer.Option(help="Of each training, for a first try.")] = DEFAULTS.max_steps,
    num_calibration: Annotated[int, typer.Option(help="Questions that measure skills.")] = DEFAULTS.num_calibration,
    num_cases: Annotated[int, typer.Option(help="Questions for the aggregator to learn from.")] = DEFAULTS.num_cases,
) -> None:
    """Train the tiny pool: five experts and an aggregator."""
    start = time.perf_counter()
    with exit_with_message(), stoppable("The same command goes on with the models that are still missing"):
        settings = PoolSettings(
            seed=seed,
            max_steps=max_steps,
            num_calibration=num_calibration,
            num_cases=num_cases,
        )
        make_pool(out, settings)
        print(f"{out}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
