"""Trains one model of the tiny pool: fixed steps, a fixed seed, one thread; and the endless examples it learns from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from experiments.tiny_pool.model import new_model
from experiments.tiny_pool.prompts import JUDGE, judge_prompt
from experiments.tiny_pool.questions import SKILLS, Part, Skill, TinyQuestion, draw_question
from experiments.tiny_pool.responses import Rule, TinyExpert, work_out, write_response
from experiments.tiny_pool.tokenizer import END_ID, PAD_ID, encode, encode_chat
from experiments.tiny_pool.workload import counted
from mosaic.core.checks import AtLeast0, AtLeast1
from mosaic.core.workload import ExpertName, Family
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.prompts import expert_prompt
from mosaic.workloads.routing import Router

Report: TypeAlias = Callable[[int, float], None]
"""Receives the steps done and the mean loss since the last report."""

STEPS_PER_REPORT = 50
_BATCHES_AT_ONCE = 16
_UNSCORED = -100
_ANSWERS = ("A", "B", "C", "D")


class TrainingExample(NamedTuple):
    """Token ids of what a model reads, in its template, and of what it should write, the end token last."""

    prompt: list[int]
    output: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained."""

    num_steps: AtLeast1
    num_opening_steps: AtLeast0 = 0
    """Number of first steps that end an output after ``opening_tokens``. The computation comes first and is most of the
    training; tokens that repeat it make a step slow."""
    opening_tokens: int = 40
    batch: AtLeast1 = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.3
    """So strong that a model finds the rule of a sum instead of remembering the sums it saw."""
    num_warmup_steps: int = 40
    decay_frac: float = 0.4
    """Share of the steps, at the end, over which the learning rate falls to nothing."""
    letter_weight: float = 4.0
    """Of the answer's letter in the loss."""

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        left = (self.num_steps - step) / (self.decay_frac * self.num_steps)
        return self.learning_rate * min(1.0, (step + 1) / self.num_warmup_steps, left)


def train(
    examples: Iterator[TrainingExample], training: Training, *, context_tokens: int, seed: int, report: Report
) -> LlamaForCausalLM:
    """Train a new model of so many positions on a stream of examples."""
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
    batches = _batches(examples, training, Random(seed))
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


def _batches(examples: Iterator[TrainingExample], training: Training, rng: Random) -> Iterator[list[TrainingExample]]:
    """Make batches of examples of nearly one length, so that little is padded, in random order."""
    num_left = training.num_opening_steps
    while True:
        num_batches = min(_BATCHES_AT_ONCE, num_left or _BATCHES_AT_ONCE)
        drawn = list(islice(examples, training.batch * num_batches))
        if num_left:
            drawn = [TrainingExample(prompt, output[: training.opening_tokens]) for prompt, output in drawn]
        drawn.sort(key=lambda example: len(example.prompt) + len(example.output))
        starts = list(range(0, len(drawn), training.batch))
        rng.shuffle(starts)
        yield from (drawn[start : start + training.batch] for start in starts)
        num_left = max(0, num_left - num_batches)


def _loss(
    model: LlamaForCausalLM, examples: Sequence[TrainingExample], letters: Tensor, letter_weight: float
) -> Tensor:
    """Average over the tokens to write; a prompt is not learnt."""
    ids, targets = _tensors(examples)
    wanted = targets != _UNSCORED
    aims = targets[wanted]
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[wanted]
    losses = functional.cross_entropy(model.lm_head(states), aims, reduction="none")
    weights = 1.0 + (letter_weight - 1.0) * torch.isin(aims, letters)
    return (losses * weights).sum() / weights.sum()


def _tensors(examples: Sequence[TrainingExample]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(output) for prompt, output in examples) - 1
    ids = torch.full((len(examples), longest), PAD_ID)
    targets = torch.full((len(examples), longest), _UNSCORED)
    for row, (prompt, output) in enumerate(examples):
        length = len(prompt) + len(output) - 1
        ids[row, :length] = torch.tensor([*prompt, *output[:-1]])
        targets[row, len(prompt) - 1 : length] = torch.tensor(output)
    return ids, targets


SKILL_WEIGHTS = {Skill.ADDITION: 1.5, Skill.MAXIMUM: 1.0, Skill.DIGIT_SUM: 1.0}
"""How often examples ask for a skill: sums take longest to learn."""
TRAININGS = {
    Family.REASONING: Training(num_steps=700, num_opening_steps=520, learning_rate=2.5e-3),
    Family.INSTRUCT: Training(num_steps=500, batch=64),
}
"""Of the experts."""
JUDGE_TRAINING = Training(num_steps=700, learning_rate=2.5e-3)
ALONE_STEPS_FRAC = 3 / 7
"""Share of the aggregator's steps, at first, without responses. It learns to copy an answer at once. Once it copies, it
hardly learns to compute one, which it needs to recognise the right response."""
ALONE_FRAC = 0.2
"""Share of its later examples without responses."""
BARE_FRAC = 0.2
"""Share of the experts' examples that ask a question without the form of its answer."""


def expert_examples(expert: TinyExpert, seed: int) -> Iterator[TrainingExample]:
    """Ask an expert anything, now and then without the form of its answer."""
    rng = Random(f"{expert.name} {seed}")
    while True:
        question = _draw(rng)
        prompt = question.text if rng.random() < BARE_FRAC else expert_prompt(counted(question))
        output = encode(write_response(expert, question, rng))
        yield TrainingExample(encode_chat(prompt), [*output, END_ID])


class Case(NamedTuple):
    """A question with responses to choose from, by expert."""

    question: TinyQuestion
    heard: Mapping[ExpertName, Sequence[Response]]


def judge_examples(cases: Sequence[Case], router: Router, *, num_alone: int, seed: int) -> Iterator[TrainingExample]:
    """Show the aggregator responses as the router would recruit them; none at all in some of the examples.

    Parameters
    ----------
    cases
        Training questions that the experts have answered.
    router
        It decides which of them are read.
    num_alone
        Examples, at first without responses; later ones have none at ``ALONE_FRAC``.
    seed
        Of the draw.
    """
    rng = Random(f"judge {seed}")
    weights = {skill: router.weights((skill.value,)) for skill in SKILLS}
    for number in count():
        if number < num_alone or rng.random() < ALONE_FRAC:
            question, responses = _draw(rng), []
        else:
            question, heard = rng.choice(cases)
            names = list(weights[question.skill])
            slots = rng.choices(names, list(weights[question.skill].values()), k=router.num_slots)
            responses = [rng.choice(heard[name]) for name in slots]
        prompt = encode_chat(judge_prompt(counted(question), responses))
        if len(prompt) <= JUDGE.context_limit - JUDGE.max_output_tokens:  # what babblers say may not fit
            yield TrainingExample(prompt, [*encode(judge_response(question)), END_ID])


def judge_response(question: TinyQuestion) -> str:
    """Write what the aggregator is trained to answer."""
    work = work_out(question, Rule.RIGHT, question.value)
    return f"{work}\nIt is {question.value}. The answer is ({question.letter})."


def _draw(rng: Random) -> TinyQuestion:
    skill = rng.choices(SKILLS, [SKILL_WEIGHTS[skill] for skill in SKILLS])[0]
    return draw_question(skill, Part.TRAIN, rng)
