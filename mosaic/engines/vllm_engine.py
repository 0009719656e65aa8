"""Wraps vLLM: the only module that uses its settings, requests and outputs.

Measured with vLLM 0.32 on CPU; the paths for GPUs follow the same interface.
"""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import count
from math import exp
from typing import Any

from mosaic.answers.response_text import without_thinking
from mosaic.core.chat import Chat
from mosaic.core.engine_options import Device, EngineOptions
from mosaic.core.workload import CallKey
from mosaic.engines.engine import MORE_ROOM, EngineSpec, Output, Request
from mosaic.engines.prompt_text import beginning_of, messages_of, opens_thinking, plain_text
from mosaic.engines.sparse_attention import install, uninstall

CPU_ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",  # compiling the sampler took 16 s of the first batch
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # worker processes pin themselves
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores from other workers
}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an engine core of its own is orphaned when its parent dies
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_DEVICE_LOST = re.compile(r"CUDA error|CUDA driver|No CUDA GPUs|NVML|device-side|uncorrectable ECC", re.IGNORECASE)


def prepare(settings: EngineOptions) -> None:
    """Set the environment, then import vLLM, which reads many settings only at import.

    NOTE: values set by the user are kept, except those that would break crash safety.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = ENVIRONMENT["VLLM_ENABLE_V1_MULTIPROCESSING"]
    wanted = ENVIRONMENT | (CPU_ENVIRONMENT if settings.loading.device is Device.CPU else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    import vllm
    import vllm.inputs.engine
    import vllm.v1.engine.llm_engine

    # The package resolves it lazily, and it is the slower part of the import.
    assert vllm.LLM is not None
    assert vllm.SamplingParams is not None


def open_engine(spec: EngineSpec) -> "VllmEngine":
    """Load an expert in this process.

    Raises
    ------
    ValueError
        For example if its checkpoint needs Python files that may not be run.
    """
    import torch
    from vllm import LLM

    loading = spec.settings.options.loading
    if loading.device is Device.CPU:
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # the cores to which it is pinned
    _keep_kv(spec)
    try:
        llm = LLM(**engine_arguments(spec))
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            "engine.trust_remote_code must be true to run the Python files of the checkpoint (read them "
            f"first: {spec.settings.checkpoint}), got {loading.trust_remote_code}"
        ) from error
    return VllmEngine(llm, spec)


def _keep_kv(spec: EngineSpec) -> None:
    """Set up the KV cache of the engine for its expert."""
    kv, unstable = spec.settings.kv, spec.settings.unstable
    if kv is None:
        uninstall()
    else:
        install(kv, unstable)


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Translate a spec into vLLM's arguments."""
    settings, options, loading = spec.settings, spec.settings.options, spec.settings.options.loading
    arguments: dict[str, Any] = {
        "model": str(settings.checkpoint),
        "dtype": loading.dtype,
        "enforce_eager": loading.enforce_eager,
        "block_size": options.block_size,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": spec.context_tokens,
        "enable_prefix_caching": options.enable_prefix_caching is not False,
        "load_format": loading.load_format,
        "skip_tokenizer_init": not settings.with_tokenizer,
        "trust_remote_code": loading.trust_remote_code,
        "disable_log_stats": False,  # the statistics have the timestamps of requests
        "seed": 0,  # requests carry their own
    }
    if options.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = options.max_num_batched_tokens
    if loading.device is Device.CPU:
        # NOTE: a prompt that is read in chunks rewinds its random generator, which CPU generators refuse: the engine
        # dies at the first such request with a seed. So prompts are read whole, and the largest must fit.
        arguments["enable_chunked_prefill"] = False
        if options.max_num_batched_tokens is not None:
            arguments["max_num_batched_tokens"] = max(options.max_num_batched_tokens, spec.context_tokens)
    if settings.kv_cache_memory_bytes is not None:
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_memory_bytes
    if loading.device is Device.GPU:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if spec.num_workers > 1:
            arguments |= {"tensor_parallel_size": spec.num_workers, "distributed_executor_backend": "mp"}
    return arguments


def is_device_lost(error: Exception) -> bool:
    """Return whether an error means that the GPU is lost; out of memory is no such error."""
    return _DEVICE_LOST.search(str(error)) is not None and "out of memory" not in str(error)


class VllmEngine:
    """vLLM's engine loop, one step at a time."""

    def __init__(self, llm: Any, spec: EngineSpec) -> None:
        self._engine = llm.llm_engine
        self._tokenizer = llm.get_tokenizer() if spec.settings.with_tokenizer else None
        self._expert = spec.expert
        self._context_tokens = spec.context_tokens
        self._vocab_size: int = llm.model_config.get_vocab_size()
        self._numbers = count()
        self._keys: dict[str, CallKey] = {}
        """By the request's number in vLLM."""
        self._ids: dict[CallKey, tuple[str, str]] = {}
        """This number, and vLLM's own name of the request."""
        self._generated: dict[CallKey, tuple[int, ...]] = {}
        """Tokens that another engine had written: they are part of the prompt here."""
        self._thinking_opened: set[CallKey] = set()

    @property
    def kv_cache_tokens(self) -> int:
        """Capacity of the KV cache, as measured when it was loaded."""
        tokens: int = self._engine.vllm_config.cache_config.kv_cache_size_tokens
        return tokens

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises
        ------
        ValueError
            If its prompt is empty, too long or not made of the model's tokens: vLLM would silently cut a response that
            exceeds the context.
        """
        from vllm.inputs.engine import tokens_input

        tokens, opened = self._tokens(request)
        limit, generated = min(request.max_output_tokens, self._context_tokens - len(tokens)), request.generated
        if not tokens:
            raise ValueError("prompt must hold at least one token, got none")
        if limit <= len(generated) or (request.output_tokens or 0) > limit:
            wanted = f" and {request.output_tokens} of output" if request.output_tokens else ""
            raise ValueError(
                f"prompt must leave room in {self._expert}'s context_tokens of {self._context_tokens}, "
                f"got {len(tokens)}{wanted}: {MORE_ROOM}"
            )
        if not all(0 <= token < self._vocab_size for token in tokens):
            raise ValueError(f"prompt must hold token ids in 0 .. {self._vocab_size - 1}, got {max(tokens)}")
        key, number = request.key, str(next(self._numbers))
        name = self._engine.add_request(number, tokens_input([*tokens, *generated]), self._sampling(request, limit))
        self._keys[number], self._ids[key] = key, (number, name)
        if generated:
            self._generated[key] = generated
        if opened:
            self._thinking_opened.add(key)

    def step(self) -> Sequence[Output]:
        return [self._output(output) for output in self._engine.step() if output.finished]

    def abort(self, key: CallKey) -> Output:
        number, name = self._ids[key]
        state = self._engine.output_processor.request_states[name]
        stats, new = state.stats, tuple(state.detokenizer.output_token_ids)
        self._engine.abort_request([number])
        generated, opened = self._forget(key)
        text = self._text(generated + new)
        return Output(
            key=key,
            prompt_tokens=state.prompt_len - len(generated),
            token_ids=generated + new,
            scheduled_ts=stats.scheduled_ts or None,
            first_token_ts=stats.first_token_ts or None,
            text=text,
            visible_tokens=None if text is None else self._visible(text, len(generated + new), opened),
            thinking_opened=opened,
        )

    def progress(self) -> Mapping[CallKey, int]:
        states = self._engine.output_processor.request_states
        return {
            key: len(self._generated.get(key, ())) + states[name].stats.num_generation_tokens
            for key, (_, name) in self._ids.items()
        }

    def _forget(self, key: CallKey) -> tuple[tuple[int, ...], bool]:
        """Delete a request; returns its tokens generated before, and whether it started inside thinking."""
        opened = key in self._thinking_opened
        self._thinking_opened.discard(key)
        number, _ = self._ids.pop(key)
        del self._keys[number]
        return self._generated.pop(key, ()), opened

    def _text(self, token_ids: tuple[int, ...]) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _tokens(self, request: Request) -> tuple[list[int], bool]:
        """Turn a prompt into tokens; returns also whether it ends inside thinking."""
        if isinstance(request.prompt, tuple):
            return list(request.prompt), False
        if self._tokenizer is None:
            raise ValueError("prompt must be token ids where no tokenizer is loaded, got a text")
        if not getattr(self._tokenizer, "chat_template", None):
            text = plain_text(request.prompt)
            if request.is_beginning:
                return self._beginning(text, request.prompt, add_special_tokens=True), False
            return self._tokenizer.encode(text), False
        messages = messages_of(request.prompt)
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template reports in its own words which roles it accepts
            raise ValueError(f"messages must be what {self._expert}'s chat template takes ({error})") from error
        # The template has already written the special tokens.
        if request.is_beginning:
            return self._beginning(text, request.prompt, add_special_tokens=False), False
        return self._tokenizer.encode(text, add_special_tokens=False), opens_thinking(text)

    def _beginning(self, text: str, prompt: str | Chat, *, add_special_tokens: bool) -> list[int]:
        """Turn a prompt into tokens up to the end of its last message; the last token may differ from the prompt's."""
        assert self._tokenizer is not None, "the prompt is a text"
        tokens: list[int] = self._tokenizer.encode(beginning_of(text, prompt), add_special_tokens=add_special_tokens)
        return tokens[:-1]

    def _sampling(self, request: Request, limit: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        exactly, num_generated = request.output_tokens, len(request.generated)
        return SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=(limit if exactly is None else exactly) - num_generated,
            min_tokens=0 if exactly is None else exactly - num_generated,
            ignore_eos=exactly is not None,
            detokenize=self._tokenizer is not None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            logprobs=0 if request.with_confidence else None,  # only of the sampled tokens
            **({} if request.sampling is None else request.sampling.engine_values),
        )

    def _output(self, output: Any) -> Output:
        key, completion, stats = self._keys[output.request_id], output.outputs[0], output.metrics
        generated, opened = self._forget(key)
        token_ids = generated + tuple(completion.token_ids)
        text = None if self._tokenizer is None else completion.text
        if generated:
            text = self._text(token_ids)
        return Output(
            key=key,
            token_ids=token_ids,
            text=text,
            finish_reason=completion.finish_reason or "",
            prompt_tokens=len(output.prompt_token_ids) - len(generated),
            cached_tokens=output.num_cached_tokens or 0,
            num_preemptions=stats.num_preemptions,
            scheduled_ts=stats.scheduled_ts,
            first_token_ts=stats.first_token_ts,
            last_token_ts=stats.last_token_ts,
            visible_tokens=None if text is None else self._visible(text, len(token_ids), opened),
            thinking_opened=opened,
            confidence=confidence_of(completion.cumulative_logprob, len(completion.token_ids)),
        )

    def _visible(self, text: str, output_tokens: int, opened: bool) -> int:
        visible = without_thinking(text, thinking_opened=opened)
        if visible == text or self._tokenizer is None:
            return output_tokens
        return len(self._tokenizer.encode(visible, add_special_tokens=False))


def confidence_of(sum_of_logs: float | None, num_tokens: int) -> float | None:
    """Compute the geometric mean of the probabilities of some tokens from the sum of their logarithms.

    Examples
    --------
    >>> confidence_of(-2.0, 2) == exp(-1), confidence_of(None, 2), confidence_of(0.0, 0)
    (True, None, None)
    """
    return None if sum_of_logs is None or num_tokens == 0 else exp(min(0.0, sum_of_logs) / num_tokens)
