"""Jobs of the processes that make the tiny pool: train a model, let a model answer. One thread each, so repeatable."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from typing import Annotated, Any, TypeAlias

import torch
import transformers
from transformers import LlamaForCausalLM
from transformers.utils import logging

from experiments.tiny_pool.checkpoint import read_manifest, write_checkpoint
from experiments.tiny_pool.model import generate
from experiments.tiny_pool.prompts import CONTEXT_TOKENS, JUDGE, MAX_OUTPUT_TOKENS, SHAPE
from experiments.tiny_pool.questions import Part, Skill, TinyQuestion, draw_questions
from experiments.tiny_pool.responses import EXPERTS, TinyExpert, write_response
from experiments.tiny_pool.tokenizer import decode, encode_chat
from experiments.tiny_pool.training import (
    ALONE_STEPS_FRAC,
    JUDGE_TRAINING,
    TRAININGS,
    Case,
    Training,
    TrainingExample,
    expert_examples,
    judge_examples,
    train,
)
from experiments.tiny_pool.trials import NUM_SLOTS, make_cases, shares_right
from experiments.tiny_pool.workload import counted
from mosaic.core.checks import AtLeast0, AtLeast1, Limit, checked
from mosaic.core.workload import ExpertName
from mosaic.pipelines.prompts import expert_prompt
from mosaic.workloads.routing import Router, SkillProfiles

AtLeast3: TypeAlias = Annotated[int, Limit(at_least=3)]
TEMPERATURE = 0.7
"""At which the pool is run, and its skills are measured."""
_NUM_DIGESTED = 256
_NUM_TRIED = 150
WATCH_S = 1.0
"""The end of a process that waits is seen within so many seconds, and Ctrl-C too."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class PoolSettings:
    """All that decides a pool, beside the texts that it is taught."""

    seed: AtLeast0 = 0
    max_steps: AtLeast1 | None = None
    """Of each training, for a first try; None: as many as it takes."""
    num_calibration: AtLeast3 = 600
    """Questions that measure the skills."""
    num_cases: AtLeast3 = 1500
    """Training questions that the experts answer for the aggregator to learn from, twice each."""

    def limited(self, training: Training) -> Training:
        """Shorten a training to the most steps."""
        steps = training.num_steps if self.max_steps is None else min(self.max_steps, training.num_steps)
        opening = training.num_opening_steps * steps // training.num_steps
        return replace(training, num_steps=steps, num_opening_steps=opening)


def prepare_process(parent: int, stopped: Event) -> None:
    """Set a process up to compute the same bytes each time, and to end with its parent or by the event."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the one that started this says it once
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    threading.Thread(target=_end_with, args=(parent, stopped), daemon=True).start()


def _end_with(parent: int, stopped: Event) -> None:
    while not stopped.wait(WATCH_S) and os.getppid() == parent:
        pass
    os._exit(1)


def expert_settings(expert: TinyExpert, settings: PoolSettings) -> dict[str, Any]:
    """State what decides an expert's weights."""
    training = settings.limited(TRAININGS[expert.family])
    examples = expert_examples(expert, settings.seed)
    return {"seed": settings.seed, "training": asdict(training), "examples_sha256": _digest(examples)}


def train_expert(name: ExpertName, pool: Path, settings: PoolSettings) -> str:
    """Train an expert and write its checkpoint, unless it is there; return what to tell of it."""
    expert = next(expert for expert in EXPERTS if expert.name == name)
    wanted = expert_settings(expert, settings)
    if is_made(pool / name, wanted):
        return f"{name}: already trained"
    start = time.perf_counter()
    training = settings.limited(TRAININGS[expert.family])
    examples = expert_examples(expert, settings.seed)
    report = _reporter(name, training)
    model = train(examples, training, context_tokens=CONTEXT_TOKENS, seed=settings.seed, report=report)
    write_checkpoint(pool / name, model, _manifest(name, wanted, family=expert.family.value))
    tried = draw_questions(min(_NUM_TRIED, settings.num_calibration), Part.CALIBRATION, settings.seed + 1)
    return _trained(name, training, shares_right(tried, _ask(model, tried, 0.0, 0)), time.perf_counter() - start)


def pool_settings(settings: PoolSettings) -> dict[str, Any]:
    """State what decides a whole pool; the aggregator's examples are those that flawless learners would give it."""
    router = Router(
        profiles=SkillProfiles(scores={expert.name: {skill.value: 1 for skill in Skill} for expert in EXPERTS})
    )
    questions = draw_questions(_NUM_TRIED, Part.TRAIN, settings.seed)
    said = {
        expert.name: [[write_response(expert, question, Random(0)) for question in questions]] for expert in EXPERTS
    }
    return asdict(settings) | {
        "experts": {expert.name: expert_settings(expert, settings) for expert in EXPERTS},
        "aggregator": _judge_settings(router, make_cases(questions, said), settings),
    }


def _judge_settings(router: Router, cases: Sequence[Case], settings: PoolSettings) -> dict[str, Any]:
    training = settings.limited(JUDGE_TRAINING)
    return {
        "seed": settings.seed,
        "training": asdict(training),
        "num_alone": _num_alone(training),
        "examples_sha256": _digest(judge_examples(cases, router, num_alone=0, seed=settings.seed)),
    }


def train_judge(pool: Path, settings: PoolSettings, profiles: SkillProfiles, cases: Sequence[Case]) -> str:
    """Train the aggregator and write its checkpoint, unless it is there; return what to tell of it."""
    router = Router(profiles=profiles, num_slots=NUM_SLOTS)
    wanted = _judge_settings(router, cases, settings)
    if is_made(pool / JUDGE.name, wanted):
        return f"{JUDGE.name}: already trained"
    start = time.perf_counter()
    training = settings.limited(JUDGE_TRAINING)
    examples = judge_examples(cases, router, num_alone=_num_alone(training), seed=settings.seed)
    report = _reporter(JUDGE.name, training)
    model = train(examples, training, context_tokens=JUDGE.context_limit, seed=settings.seed, report=report)
    write_checkpoint(pool / JUDGE.name, model, _manifest(JUDGE.name, wanted, family=JUDGE.family.value))
    return f"{JUDGE.name}: {training.num_steps} steps in {time.perf_counter() - start:.0f} s"


def answer(checkpoint: Path, questions: Sequence[TinyQuestion], seed: int) -> list[str]:
    """Let an expert answer questions, as a run does."""
    return _ask(LlamaForCausalLM.from_pretrained(checkpoint), questions, TEMPERATURE, seed)


def is_made(checkpoint: Path, wanted: dict[str, Any]) -> bool:
    """Tell whether a checkpoint is there, undamaged, and made with these settings."""
    manifest = read_manifest(checkpoint)
    return manifest is not None and manifest.get("settings") == wanted


def versions() -> dict[str, str]:
    """Name what may decide the bytes of a model beside its settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }


def _num_alone(training: Training) -> int:
    return int(ALONE_STEPS_FRAC * training.num_steps) * training.batch


def _ask(model: LlamaForCausalLM, questions: Sequence[TinyQuestion], temperature: float, seed: int) -> list[str]:
    prompts = [encode_chat(expert_prompt(counted(question))) for question in questions]
    written = generate(model, prompts, max_output_tokens=MAX_OUTPUT_TOKENS, temperature=temperature, seed=seed)
    return [decode(output) for output in written]


def _digest(examples: Iterator[TrainingExample]) -> str:
    return sha256(repr(list(islice(examples, _NUM_DIGESTED))).encode()).hexdigest()


def _manifest(name: ExpertName, wanted: dict[str, Any], *, family: str) -> dict[str, Any]:
    return {
        "name": name,
        "family": family,
        "num_steps": wanted["training"]["num_steps"],
        "seed": wanted["seed"],
        "settings": wanted,
        "shape": asdict(SHAPE),
        "versions": versions(),
    }


def _reporter(name: ExpertName, training: Training) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        print(f"{name}: step {step} of {training.num_steps}, loss {loss:.3f}", flush=True)

    return report


def _trained(name: ExpertName, training: Training, shares: dict[str, float], wall_s: float) -> str:
    listed = ", ".join(f"{group} {share:.0%}" for group, share in shares.items())
    return f"{name}: {training.num_steps} steps in {wall_s:.0f} s; right on held-out questions: {listed}"
