"""Make the tiny pool: five experts that really answer and an aggregator, trained on the spot.

    python experiments/make_pool.py                 into checkpoints/tiny, which git ignores
    python experiments/make_pool.py --out FOLDER

Two processes with one thread each; the same seed gives the same bytes on the same machine. A pool that is complete
with these settings is not made again, and one that was interrupted goes on with the models that are still missing.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
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
    TEMPERATURE,
    WATCH_S,
    PoolSettings,
    answer,
    pool_settings,
    prepare_process,
    train_expert,
    train_judge,
    versions,
)
from experiments.tiny_pool.prompts import JUDGE, MAX_OUTPUT_TOKENS, judge_prompt
from experiments.tiny_pool.questions import Part, TinyQuestion, draw_questions
from experiments.tiny_pool.responses import EXPERTS
from experiments.tiny_pool.trials import (
    Answered,
    Slot,
    best_routed,
    compare_routed,
    describe_pool,
    heard,
    make_cases,
    measure_profiles,
    recruit,
    shares_right,
)
from experiments.tiny_pool.workload import counted
from mosaic.config.errors import exit_with_message, stoppable
from mosaic.core.workload import ExpertName
from mosaic.engines.checkpoints import MANIFEST as CHECKSUMS
from mosaic.pipelines.prompts import expert_prompt
from mosaic.report.run_folder import write_file
from mosaic.workloads.routing import SkillProfiles

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
        results = _make(out, settings, workers)
    finally:
        stopped.set()  # whatever still trains then was not waited for: an error, or Ctrl-C
        workers.shutdown(cancel_futures=True)
    manifest = {
        "settings": pool_settings(settings),
        "checkpoints": {name: file_digest(out / name / CHECKSUMS) for name in (*NAMES, JUDGE.name)},
        "skill_profiles_sha256": file_digest(out / SKILL_PROFILES),
        "results": results,
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
        describe_pool(manifest)  # one of an earlier version is measured again, by the models that are there
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if intact and manifest.get("settings") == pool_settings(settings) else None


def _make(out: Path, settings: PoolSettings, workers: ProcessPoolExecutor) -> dict[str, Any]:
    training = {workers.submit(train_expert, name, out, settings) for name in NAMES}
    while training:
        trained, training = wait(training, WATCH_S, FIRST_COMPLETED)
        for future in trained:
            print(future.result(), flush=True)
    panel = Panel(out, settings.seed, workers)
    calibration = draw_questions(settings.num_calibration, Part.CALIBRATION, settings.seed)
    lessons = draw_questions(settings.num_cases, Part.TRAIN, settings.seed)
    said = {name: [panel.ask(name, lessons), panel.ask(name, lessons)] for name in NAMES}
    calibrated = {name: panel.ask(name, calibration) for name in NAMES}
    profiles = measure_profiles(calibration, {name: awaited(future).result() for name, future in calibrated.items()})
    write_file(out, SKILL_PROFILES, json_bytes(profiles.scores))
    print(f"skills measured on {len(calibration)} questions: {out / SKILL_PROFILES}", flush=True)
    cases = make_cases(lessons, {name: [awaited(future).result() for future in both] for name, both in said.items()})
    judge = workers.submit(train_judge, out, settings, profiles, cases)
    return _measure(panel, settings, profiles, judge)


def awaited(future: Future[Result]) -> Future[Result]:
    """Wait until it is done; a wait without an end may hear Ctrl-C only when it ends."""
    while not future.done():
        wait([future], WATCH_S)
    return future


class Panel:
    """The trained models, which answer in the worker processes; no two requests share a seed."""

    def __init__(self, out: Path, seed: int, workers: ProcessPoolExecutor) -> None:
        self._out, self._seed, self._workers = out, seed, workers
        self._num_asked = 0

    def ask(self, name: ExpertName, questions: Sequence[TinyQuestion]) -> Future[list[Answered]]:
        """Ask an expert questions, as a run does."""
        asked = [expert_prompt(counted(question)) for question in questions]
        return self.prompt(name, asked, MAX_OUTPUT_TOKENS, TEMPERATURE)

    def prompt(
        self, name: ExpertName, prompts: Sequence[str], max_output_tokens: int, temperature: float
    ) -> Future[list[Answered]]:
        """Give a model prompts."""
        self._num_asked += 1
        return self._workers.submit(
            answer,
            self._out / name,
            prompts,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
            seed=1000 * self._seed + self._num_asked,
        )


def _measure(panel: Panel, settings: PoolSettings, profiles: SkillProfiles, judge: Future[str]) -> dict[str, Any]:
    test = draw_questions(settings.num_test, Part.TEST, settings.seed)
    answered = {name: panel.ask(name, test) for name in NAMES}
    slots_of = _routed(panel, test, recruit(test, profiles, settings.seed))
    print(awaited(judge).result(), flush=True)
    prompts = [
        judge_prompt(counted(question), [heard(*slot) for slot in slots])
        for question, slots in zip(test, slots_of, strict=True)
    ]
    alone = [judge_prompt(counted(question), []) for question in test]
    judged, judged_alone = (
        panel.prompt(JUDGE.name, asked, JUDGE.max_output_tokens, JUDGE.temperature) for asked in (prompts, alone)
    )
    texts = {name: [answered.text for answered in awaited(future).result()] for name, future in answered.items()}
    return {
        "num_test": len(test),
        "experts": {
            name: {
                "right": shares_right(test, texts[name]),
                "mean_tokens": fmean(answer.num_tokens for answer in awaited(answered[name]).result()),
            }
            for name in NAMES
        },
        "best_routed_expert": best_routed(test, profiles, texts),
        "aggregator_alone": shares_right(test, [answered.text for answered in awaited(judged_alone).result()]),
        "routed": compare_routed(test, slots_of, awaited(judged).result()),
    }


def _routed(panel: Panel, test: Sequence[TinyQuestion], recruited: Sequence[Sequence[ExpertName]]) -> list[list[Slot]]:
    """Ask each question's recruited experts, one expert after the other."""
    asked: dict[ExpertName, list[int]] = {name: [] for name in NAMES}
    for number, names in enumerate(recruited):
        for name in names:
            asked[name].append(number)
    answers = {name: panel.ask(name, [test[i] for i in numbers]) for name, numbers in asked.items() if numbers}
    left = {name: iter(awaited(future).result()) for name, future in answers.items()}
    return [[Slot(name, next(left[name])) for name in names] for names in recruited]


def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pool.")] = DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(help="Of questions, lessons and weights.")] = DEFAULTS.seed,
    max_steps: Annotated[int | None, typer.Option(help="Of each training, for a first try.")] = DEFAULTS.max_steps,
    num_calibration: Annotated[int, typer.Option(help="Questions that measure skills.")] = DEFAULTS.num_calibration,
    num_cases: Annotated[int, typer.Option(help="Questions for the aggregator to learn from.")] = DEFAULTS.num_cases,
    num_test: Annotated[int, typer.Option(help="Questions of the final table.")] = DEFAULTS.num_test,
) -> None:
    """Train the tiny pool: five experts and an aggregator."""
    start = time.perf_counter()
    with exit_with_message(), stoppable("The same command goes on with the models that are still missing"):
        settings = PoolSettings(
            seed=seed,
            max_steps=max_steps,
            num_calibration=num_calibration,
            num_cases=num_cases,
            num_test=num_test,
        )
        print(describe_pool(make_pool(out, settings)))
        print(f"{out}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
