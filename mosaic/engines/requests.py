"""Turns calls into requests, with a fingerprint of all inputs of a response, and responses into answers."""

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from mosaic.answers.extraction import extract_answer
from mosaic.core.chat import Chat, Sampling
from mosaic.core.checks import require_count
from mosaic.core.cluster import Worker
from mosaic.core.errors import BackendError
from mosaic.core.realization import Outcome, Outcomes
from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, Expert, Question
from mosaic.engines.engine import MORE_ROOM, EngineSpec, Prompt, Request

Prompts: TypeAlias = Callable[[Call, Inputs], Prompt]
"""Returns the prompt of a call, given the records of the calls in its ``after``."""


_AS_THE_EXPERT = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedExpert:
    """An expert with the settings of its engines, on any workers."""

    expert: Expert
    context_tokens: int
    vocab_size: int | None
    """None: not known, so no prompt can be drawn."""
    decides: tuple[str | int, ...]
    """Settings of its engines that responses depend on."""

    def output_limit(self, prompt_tokens: int) -> int:
        """Most tokens that a call may write: min(its maximum, context - prompt)."""
        return min(self.expert.max_output_tokens, self.context_tokens - prompt_tokens)


class Engines(Protocol):
    """Describes the engines of experts; one implementation for each kind of `EngineModule`."""

    def served(self, expert: Expert) -> ServedExpert:
        """Check that an expert can be served at all.

        Raises
        ------
        BackendError
            If it cannot.
        """

    def spec(self, expert: Expert, workers: Sequence[Worker]) -> EngineSpec:
        """Return how to load an expert on some workers, as many as its tensor-parallel degree.

        Raises
        ------
        BackendError
            If it cannot be served there.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContent:
    """Builds the requests of a run, and reads its responses.

    With equal contents, equal calls have the same generation in every plan.
    """

    prompts: Prompts | None = None
    """The prompts of calls. None (replay only): random tokens, as many as each call has."""
    prefixes: Prompts | None = None
    """The beginnings of calls' prompts, given the ended calls. None: not known, unless prompts are random tokens.

    The beginning of a random prompt is the shorter random prompt.
    """
    questions: Mapping[str, Question] = field(default_factory=dict)
    """By id; answers to these questions are read from the responses."""
    outcomes: Outcomes | None = None
    """Replay: each call writes exactly the tokens of its outcome, and has the outcome's answer.

    None: live, the model decides.
    """
    root_seed: int = 0
    """Responses depend on it and the calls' keys."""
    with_confidence: bool = False
    """Engines return the probabilities of each response's tokens."""

    def __post_init__(self) -> None:
        require_count(self.root_seed, "run content: root_seed")
        if self.prompts is None and self.outcomes is None:
            raise ValueError("run content: prompts must be given unless outcomes are replayed, got None")

    def outcome(self, call: Call, inputs: Inputs, kv_budget_tokens: int | None = None) -> Outcome | None:
        """Return the outcome of a call with a given KV budget; None: the model decides."""
        return None if self.outcomes is None else self.outcomes(call, inputs).with_kv_budget(kv_budget_tokens)

    def request(self, call: Call, served: ServedExpert, inputs: Inputs, outcome: Outcome | None) -> Request:
        """Build the request of a call.

        Raises
        ------
        BackendError
            If a replayed call's prompt leaves no room in the expert's context.
        """
        expert, sampling = served.expert, self._sampling(call.key)
        seed = self._seed(call.key, sampling)
        prompt = self.prompt(call, served, inputs, seed)
        length = None
        if outcome is not None:
            num_tokens = len(prompt) if isinstance(prompt, tuple) else call.prompt_tokens
            if num_tokens >= served.context_tokens:
                raise BackendError(
                    f"call {call.key}: prompt_tokens must be below {expert.name}'s context_tokens of "
                    f"{served.context_tokens}, got {num_tokens}: {MORE_ROOM}"
                )
            length = min(outcome.output_tokens, served.output_limit(num_tokens))
        temperature = expert.temperature if sampling.temperature is None else sampling.temperature
        most = min(expert.max_output_tokens, sampling.max_output_tokens or expert.max_output_tokens)
        values = {} if sampling is _AS_THE_EXPERT else sampling.engine_values
        decides: list[object] = [
            prompt.messages if isinstance(prompt, Chat) else prompt,
            seed,
            temperature,
            most,
            length,
        ]
        if values:
            decides.append(values)
        if self.with_confidence:
            decides.append("with confidence")  # a journal without it cannot be reused
        return Request(
            key=call.key,
            fingerprint=f"{_engine_digest(served.decides)}-{_digest(decides)}",
            prompt=prompt,
            prompt_tokens=call.prompt_tokens,
            seed=seed,
            temperature=temperature,
            max_output_tokens=most,
            output_tokens=length,
            sampling=sampling if values else None,
            with_confidence=self.with_confidence,
        )

    def prompt(self, call: Call, served: ServedExpert, inputs: Inputs, seed: int) -> Prompt:
        """Write the prompt of a call, or draw it from its seed.

        Raises
        ------
        BackendError
            If neither is possible.
        """
        prompt = _prompt(self.prompts, call, served, inputs, seed)
        if prompt is None:
            name = served.expert.name
            raise BackendError(f"expert {name}: prompts must be given, its engine's vocabulary is not known")
        return prompt

    def prefill(self, call: Call, served: ServedExpert, inputs: Inputs) -> Request | None:
        """Build the request of a prefill ahead of a call; None: its prompt is not known."""
        if self.prefixes is None and self.prompts is not None:
            return None
        seed = self._seed(call.key, self._sampling(call.key))
        prompt = _prompt(self.prefixes, call, served, inputs, seed)
        if prompt is None:
            return None
        return Request(
            key=call.key,
            prompt=prompt,
            prompt_tokens=call.prompt_tokens,
            seed=seed,
            temperature=served.expert.temperature,
            max_output_tokens=1,
            is_beginning=True,
        )

    def _seed(self, key: CallKey, sampling: Sampling) -> int:
        return response_seed(self.root_seed if sampling.seed is None else sampling.seed, key)

    def _sampling(self, key: CallKey) -> Sampling:
        """Return the sampling parameters of a call's request; a replay uses the experts' own."""
        question = self.questions.get(key.question)
        return _AS_THE_EXPERT if question is None or question.sampling is None else question.sampling

    def read(self, record: CallRecord, served: ServedExpert, outcome: Outcome | None) -> CallRecord:
        """Read the model's answer; in replay the outcome has it, unless the call was cut off before."""
        if record.status is CallStatus.CUT and outcome is not None:
            return replace(record, visible_tokens=None if outcome.visible_tokens is None else 0)
        if record.status is not CallStatus.FINISHED:
            return record
        if outcome is not None:
            limit = served.output_limit(record.prompt_tokens)
            if record.output_tokens == outcome.output_tokens < limit:
                return replace(record, answer=outcome.answer, visible_tokens=outcome.visible_tokens)
            return replace(record, visible_tokens=None if outcome.visible_tokens is None else 0)
        question, response = self.questions.get(record.key.question), record.response
        if question is None or response is None or (text := response.text) is None:
            return record
        answer = extract_answer(text, question, thinking_opened=response.thinking_opened)
        return replace(record, answer=None if answer is None else sys.intern(answer))  # a letter of each is many


def _prompt(write: Prompts | None, call: Call, served: ServedExpert, inputs: Inputs, seed: int) -> Prompt | None:
    """Write or draw a call's prompt; None: neither is possible."""
    if write is not None:
        return write(call, inputs)
    return None if served.vocab_size is None else random_prompt(call, seed, served.vocab_size)


def is_of_same_engine(fingerprint: str, other: str) -> bool:
    """Return whether two responses differ at most in their requests.

    Examples
    --------
    >>> is_of_same_engine("e1-c1", "e1-c2"), is_of_same_engine("e1-c1", "e2-c1")
    (True, False)
    """
    return fingerprint.partition("-")[0] == other.partition("-")[0]


@cache
def _engine_digest(decides: tuple[str | int, ...]) -> str:
    return _digest(decides)


def _digest(values: Sequence[object]) -> str:
    return blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def response_seed(root_seed: int, key: CallKey) -> int:
    """Derive a call's seed from the root seed and its key alone: plan, workers and crashes do not change a response.

    Examples
    --------
    >>> from mosaic.core.workload import PROPOSE
    >>> response_seed(0, CallKey("q1", PROPOSE, 0)) == response_seed(0, CallKey("q1", PROPOSE, 1))
    False
    """
    question, node, slot = key
    digest = blake2b(f"{root_seed}|response|{question}|{node}|{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # engines take signed numbers of 64 bits


def random_prompt(call: Call, seed: int, vocab_size: int) -> tuple[int, ...]:
    """Draw a prompt of a call's length, for timing; no two calls share a prefix that a cache could reuse."""
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(call.prompt_tokens))
