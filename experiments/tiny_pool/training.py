"""Trains one model of the tiny pool: fixed steps, a fixed seed, one thread."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from experiments.tiny_pool.model import new_model
from experiments.tiny_pool.tokenizer import PAD_ID, encode
from mosaic.core.checks import require, require_count

Report: TypeAlias = Callable[[int, float], None]
"""Told the steps done and the mean loss since it was last told."""

STEPS_PER_REPORT = 50
_BATCHES_AT_ONCE = 16
_UNSCORED = -100
_ANSWERS = ("A", "B", "C", "D")


class Lesson(NamedTuple):
    """Token ids of what a model reads, in its template, and of what it should write, the end token last."""

    prompt: list[int]
    output: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained."""

    num_steps: int
    num_opening_steps: int = 0
    """Steps, at first, that end an output after ``opening_tokens``: the work comes first and is most of what there is
    to learn, and whatever repeats it makes a step expensive."""
    opening_tokens: int = 40
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.3
    """So strong that a model finds the rule of a sum instead of remembering the sums it saw."""
    num_warmup_steps: int = 40
    decay_frac: float = 0.4
    """Share of the steps, at the end, over which the learning rate falls to nothing."""
    letter_weight: float = 4.0
    """Of the answer's letter in the loss."""

    def __post_init__(self) -> None:
        require_count(self.num_steps, "training.num_steps", at_least=1)
        require_count(self.num_opening_steps, "training.num_opening_steps")
        require_count(self.batch, "training.batch", at_least=1)
        rule = f"at most num_steps={self.num_steps}"
        require(self.num_opening_steps <= self.num_steps, "training.num_opening_steps", rule, self.num_opening_steps)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        left = (self.num_steps - step) / (self.decay_frac * self.num_steps)
        return self.learning_rate * min(1.0, (step + 1) / self.num_warmup_steps, left)


def train(
    lessons: Iterator[Lesson], training: Training, *, context_tokens: int, seed: int, report: Report
) -> LlamaForCausalLM:
    """Train a new model of so many positions on a stream of lessons."""
    torch.manual_seed(seed)
    model = new_model(context_tokens)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=training.weight_decay,
        fused=True,
    )
    letters = torch.tensor([encode(letter)[0] for letter in _ANSWERS])
    batches = _batches(lessons, training, Random(seed))
    losses: list[float] = []
    for step in range(training.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        loss = _loss(model, next(batches), letters, training.letter_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % STEPS_PER_REPORT == 0 or step + 1 == training.num_steps:
            report(step + 1, sum(losses) / len(losses))
            losses.clear()
    return model


def _batches(lessons: Iterator[Lesson], training: Training, rng: Random) -> Iterator[list[Lesson]]:
    """Make batches of lessons of nearly one length, so that little is padded, in random order."""
    num_left = training.num_opening_steps
    while True:
        num_batches = min(_BATCHES_AT_ONCE, num_left or _BATCHES_AT_ONCE)
        drawn = list(islice(lessons, training.batch * num_batches))
        if num_left:
            drawn = [Lesson(prompt, output[: training.opening_tokens]) for prompt, output in drawn]
        drawn.sort(key=lambda lesson: len(lesson.prompt) + len(lesson.output))
        starts = list(range(0, len(drawn), training.batch))
        rng.shuffle(starts)
        yield from (drawn[start : start + training.batch] for start in starts)
        num_left = max(0, num_left - num_batches)


def _loss(model: LlamaForCausalLM, lessons: Sequence[Lesson], letters: Tensor, letter_weight: float) -> Tensor:
    """Average over the tokens to write; a prompt is not learnt."""
    ids, targets = _tensors(lessons)
    wanted = targets != _UNSCORED
    aims = targets[wanted]
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[wanted]
    losses = functional.cross_entropy(model.lm_head(states), aims, reduction="none")
    weights = 1.0 + (letter_weight - 1.0) * torch.isin(aims, letters)
    return (losses * weights).sum() / weights.sum()


def _tensors(lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(output) for prompt, output in lessons) - 1
    ids = torch.full((len(lessons), longest), PAD_ID)
    targets = torch.full((len(lessons), longest), _UNSCORED)
    for row, (prompt, output) in enumerate(lessons):
        length = len(prompt) + len(output) - 1
        ids[row, :length] = torch.tensor([*prompt, *output[:-1]])
        targets[row, len(prompt) - 1 : length] = torch.tensor(output)
    return ids, targets
