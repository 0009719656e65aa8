"""Embeds a response's tokens with a checkpoint of the pool: vLLM's pooling runner, in a process of its own."""

import atexit
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaic.core.engine_options import Device, EngineOptions
from mosaic.engines.vllm_engine import prepare

LOAD_TIMEOUT_S = 600.0
REPLY_TIMEOUT_S = 120.0


class TokenEmbeddings:
    """Embeds texts, one after the other, and caches the results; the model is loaded for the first text.

    Parameters
    ----------
    checkpoint
        A folder; any generative model works.
    context_tokens
        Longer texts are cut at their beginning.
    options
        Device and data type.
    """

    def __init__(self, checkpoint: Path, context_tokens: int, options: EngineOptions) -> None:
        self._checkpoint = checkpoint
        self._context_tokens = context_tokens
        self._options = options
        self._link: Connection | None = None
        self._known: dict[str, NDArray[np.float32]] = {}

    def __repr__(self) -> str:
        return f"TokenEmbeddings({self._checkpoint.name!r}, {self._context_tokens})"

    def __call__(self, text: str) -> NDArray[np.float32]:
        """Return the embeddings of a text's tokens, shape (num_tokens, embedding_size).

        Raises
        ------
        RuntimeError
            If the model cannot be loaded, or does not answer.
        """
        if text not in self._known:
            self._known[text] = self._ask(text)
        return self._known[text]

    def _ask(self, text: str) -> NDArray[np.float32]:
        timeout_s = REPLY_TIMEOUT_S if self._link is not None else LOAD_TIMEOUT_S
        if self._link is None:
            self._link = self._start()
        try:
            self._link.send(text)
            if not self._link.poll(timeout_s):
                raise RuntimeError(f"token embeddings of {self._checkpoint}: no answer within {timeout_s:g} s")
            found: NDArray[np.float32] = self._link.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"token embeddings of {self._checkpoint}: its process ended, see above") from error
        return found

    def _start(self) -> Connection:
        context = get_context("spawn")  # the driver never imports vLLM
        mine, other = context.Pipe()
        values = (other, self._checkpoint, self._context_tokens, self._options)
        process = context.Process(target=_serve, args=values, daemon=True)
        process.start()
        other.close()
        atexit.register(process.terminate)
        return mine


def _serve(link: Connection, checkpoint: Path, context_tokens: int, options: EngineOptions) -> None:
    """Load the model, and answer until the driver closes the link."""
    prepare(options)
    from vllm import LLM
    from vllm.config import PoolerConfig
    from vllm.inputs import TokensPrompt

    loading = options.loading
    on_cpu = {"block_size": options.block_size, "kv_cache_memory_bytes": options.kv_cache_memory_bytes}
    llm = LLM(
        model=str(checkpoint),
        runner="pooling",
        convert="embed",
        pooler_config=PoolerConfig(task="token_embed"),
        dtype=loading.dtype,
        enforce_eager=True,
        max_model_len=context_tokens,
        max_num_seqs=1,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        trust_remote_code=loading.trust_remote_code,
        **(on_cpu if loading.device is Device.CPU else {}),
    )
    tokenizer = llm.get_tokenizer()
    while True:
        try:
            text = link.recv()
        except EOFError:
            return
        tokens = tokenizer.encode(text)[-context_tokens:]
        (output,) = llm.encode([TokensPrompt(prompt_token_ids=tokens)], pooling_task="token_embed", use_tqdm=False)
        link.send(output.outputs.data.float().numpy())
