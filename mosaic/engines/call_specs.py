"""From calls to what engines are asked: prompt, seed, limits and the fingerprint of all that decides a response."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol, TypeAlias

from mosaic.core.cluster import Worker
from mosaic.core.errors import BackendError
from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey, Expert
from mosaic.engines.engine import MORE_ROOM, EngineSpec, Prompt
from mosaic.engines.messages import CallSpec

Prompts: TypeAlias = Callable[[Call, Inputs], Prompt]
"""Gives what an expert reads for a call, and for what the calls said that it comes after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedExpert:
    """An expert as its engines have it, whichever its workers."""

    expert: Expert
    context_tokens: int
    vocab_size: int | None
    """None: not known, so no prompt can be drawn."""
    decides: tuple[str | int, ...]
    """What of its engines decides a response."""

    def output_limit(self, prompt_tokens: int) -> int:
        """Most tokens that a call may write: min(its maximum, context - prompt)."""
        return min(self.expert.max_output_tokens, self.context_tokens - prompt_tokens)


class Engines(Protocol):
    """Knows the engines of experts: one for each kind of `EngineModule`."""

    def served(self, expert: Expert) -> ServedExpert:
        """Check that an expert can be served at all.

        Raises
        ------
        BackendError
            If not.
        """

    def spec(self, expert: Expert, workers: Sequence[Worker]) -> EngineSpec:
        """Say how to load an expert on some workers, as many as its tensor-parallel degree.

        Raises
        ------
        BackendError
            If it cannot be served there.
        """


def call_spec(
    call: Call, served: ServedExpert, root_seed: int, prompt: Prompt | None, outcome: Outcome | None
) -> CallSpec:
    """Make the spec of a call; equal ones are one generation, in whatever plan.

    Parameters
    ----------
    call, served
        What is to be served.
    root_seed
        Of the run.
    prompt
        None: random tokens, as many as the call has.
    outcome
        Replay: the true length. None: live, the model decides when to stop.

    Raises
    ------
    BackendError
        If a replayed call's prompt leaves no room in the expert's context.
    """
    expert, seed = served.expert, response_seed(root_seed, call.key)
    if prompt is None:
        if served.vocab_size is None:
            raise BackendError(f"expert {expert.name}: prompts must be given, its engine's vocabulary is not known")
        prompt = random_prompt(call, seed, served.vocab_size)
    length = None
    if outcome is not None:
        num_tokens = call.prompt_tokens if isinstance(prompt, str) else len(prompt)
        if num_tokens >= served.context_tokens:
            raise BackendError(
                f"call {call.key}: prompt_tokens must be below {expert.name}'s context_tokens of "
                f"{served.context_tokens}, got {num_tokens}: {MORE_ROOM}"
            )
        length = min(outcome.output_tokens, served.output_limit(num_tokens))
    spec = CallSpec(
        key=call.key,
        fingerprint="",
        prompt=prompt,
        prompt_tokens=call.prompt_tokens,
        seed=seed,
        temperature=expert.temperature,
        max_output_tokens=expert.max_output_tokens,
        output_tokens=length,
    )
    decides = [*served.decides, prompt, seed, spec.temperature, spec.max_output_tokens, length]
    return replace(spec, fingerprint=blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest())


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
