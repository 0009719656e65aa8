"""From calls to jobs: prompt, seed, limits and the fingerprint of all that decides a response."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

from mosaic.core.cluster import Gpu
from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcomes
from mosaic.core.workload import Call, CallKey, Expert
from mosaic.engines.checkpoints import Checkpoint, check_checkpoint, check_kv_memory, find_checkpoint
from mosaic.engines.engine import MORE_ROOM, Device, EngineSettings, EngineSpec, Prompt
from mosaic.engines.orders import Job
from mosaic.planning.costs import ACTIVATION_BYTES

Prompts: TypeAlias = Callable[[Call], Prompt]
"""Gives what an expert reads for a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadable:
    """An expert whose checkpoint passed the checks."""

    expert: Expert
    checkpoint: Checkpoint
    spec: EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMaker:
    """Makes the jobs of calls; equal settings give equal jobs, in whatever plan."""

    settings: EngineSettings
    root_seed: int
    prompts: Prompts | None
    """None: replay with random tokens, as many as the call has."""
    outcomes: Outcomes | None
    """Replay: the true lengths. None: live, the model decides when to stop."""
    checkpoints: Path | None
    """Where checkpoints lie that are not named by path."""

    def loadable(self, expert: Expert, gpu: Gpu, num_threads: int) -> Loadable:
        """Check an expert before anything loads it.

        Raises
        ------
        CheckpointError
            If it cannot be loaded, or one of its calls would not fit into the KV cache.
        """
        settings, with_tokenizer = self.settings, self.prompts is not None
        needed = {"weights": not settings.dummy_weights, "tokenizer": with_tokenizer}
        path = find_checkpoint(expert.checkpoint, self.checkpoints, **needed)
        checkpoint = check_checkpoint(path, **needed)
        context_tokens = min(expert.context_tokens, checkpoint.context_tokens or expert.context_tokens)
        check_kv_memory(
            checkpoint,
            kv_cache_bytes=self._kv_cache_bytes(expert, checkpoint, gpu),
            context_tokens=context_tokens,
            block_size=settings.block_size,
            dtype=settings.dtype,
        )
        if settings.device is Device.CPU and checkpoint.head_dim < 32:
            raise BackendError(f"expert {expert.name}: head_dim must be at least 32 on CPU, got {checkpoint.head_dim}")
        spec = EngineSpec(
            expert=expert.name,
            checkpoint=path,
            context_tokens=context_tokens,
            num_workers=expert.tp_degree,
            num_threads=num_threads,
            with_tokenizer=with_tokenizer,
            settings=settings,
        )
        return Loadable(expert=expert, checkpoint=checkpoint, spec=spec)

    def job(self, call: Call, loadable: Loadable) -> Job:
        """Make a call's job.

        Raises
        ------
        BackendError
            If its prompt leaves no room in the expert's context.
        """
        expert = loadable.expert
        seed = response_seed(self.root_seed, call.key)
        if self.prompts is None:
            prompt: Prompt = random_prompt(call, seed, loadable.checkpoint.vocab_size)
        else:
            prompt = self.prompts(call)
        length = None
        if self.outcomes is not None:
            length = min(self.outcomes(call).output_tokens, self.output_limit(call, loadable, prompt))
        job = Job(
            key=call.key,
            fingerprint="",
            prompt=prompt,
            prompt_tokens=call.prompt_tokens,
            seed=seed,
            temperature=expert.temperature,
            max_output_tokens=expert.max_output_tokens,
            output_tokens=length,
            ready_s=call.ready_s,
        )
        engine = loadable.spec.settings
        return stamped(
            job,
            loadable.checkpoint.fingerprint,
            loadable.spec.context_tokens,
            engine.dtype,
            engine.dummy_weights,
            engine.trust_remote_code,
        )

    def _kv_cache_bytes(self, expert: Expert, checkpoint: Checkpoint, gpu: Gpu) -> int:
        """KV memory of a session over all its workers; on GPUs what planning counts on, unless it is given."""
        given = self.settings.kv_cache_bytes
        if self.settings.device is Device.CPU:
            assert given is not None, "on CPU it is always given"
            return given
        if given is not None:
            return given * expert.tp_degree
        weight_bytes = checkpoint.weight_bytes or expert.shape.weight_bytes  # random ones take as much
        return max(0, (gpu.usable_bytes - ACTIVATION_BYTES) * expert.tp_degree - weight_bytes)

    def output_limit(self, call: Call, loadable: Loadable, prompt: Prompt) -> int:
        """Most tokens that a replayed call may write: min(its maximum, context - prompt)."""
        num_tokens = call.prompt_tokens if isinstance(prompt, str) else len(prompt)
        context_tokens = loadable.spec.context_tokens
        if num_tokens >= context_tokens:
            raise BackendError(
                f"call {call.key}: prompt_tokens must be below {loadable.expert.name}'s context_tokens of "
                f"{context_tokens}, got {num_tokens}: {MORE_ROOM}"
            )
        return min(loadable.expert.max_output_tokens, context_tokens - num_tokens)


def response_seed(root_seed: int, key: CallKey) -> int:
    """Derive a call's seed from the root seed and its key alone: plan, workers and crashes do not change a response.

    Examples
    --------
    >>> from mosaic.core.workload import PROPOSE
    >>> response_seed(0, CallKey("q1", PROPOSE, 0)) == response_seed(0, CallKey("q1", PROPOSE, 1))
    False
    """
    question, role, slot = key
    digest = blake2b(f"{root_seed}|response|{question}|{role}|{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # engines take signed numbers of 64 bits


def random_prompt(call: Call, seed: int, vocab_size: int) -> tuple[int, ...]:
    """Draw a prompt of a call's length, for timing; no two calls share a prefix that a cache could reuse."""
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(call.prompt_tokens))


def plan_fingerprint(plan: Plan) -> str:
    """Tell plans apart by their decisions."""
    sessions = [[s.id, s.expert, s.role, s.workers, s.shard, s.after] for s in plan.sessions]
    return blake2b(json.dumps(sessions).encode(), digest_size=16).hexdigest()


def stamped(job: Job, *engine: str | int) -> Job:
    """Give a job the fingerprint of all that decides its response: what is said of its engine, and the request."""
    decides = [
        *engine,
        job.prompt,
        job.seed,
        job.temperature,
        job.max_output_tokens,
        job.output_tokens,
    ]
    fingerprint = blake2b(json.dumps(decides).encode(), digest_size=16).hexdigest()
    return replace(job, fingerprint=fingerprint)
