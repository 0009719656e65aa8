"""The tiny pool's models: Llamas, as small as they can be, and how they continue prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from experiments.tiny_pool.prompts import SHAPE
from experiments.tiny_pool.tokenizer import END_ID, PAD_ID
from mosaic.core.workload import ModelShape

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def llama_config(shape: ModelShape, context_tokens: int, *, rope_theta: float = 10_000.0) -> LlamaConfig:
    """Return the configuration of a Llama of a shape, which reads the tiny pool's tokens."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype=_DTYPES[shape.bytes_per_value],
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        max_position_embeddings=context_tokens,
        num_attention_heads=shape.num_query_heads,
        num_hidden_layers=shape.num_layers,
        num_key_value_heads=shape.num_kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": rope_theta, "rope_type": "default"},
        tie_word_embeddings=shape.tied_embeddings,
        vocab_size=shape.vocab_size,
    )


def new_model(context_tokens: int) -> LlamaForCausalLM:
    """Return a model of the pool before its training."""
    model = LlamaForCausalLM(llama_config(SHAPE, context_tokens))
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02 if parameter is embedding else 0.05)
    return model


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_output_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 256,
) -> list[list[int]]:
    """Continue prompts of any lengths up to the end token, which is left out; temperature 0 is greedy.

    NOTE: transformers' own ``generate`` computes finished rows until the longest ends. That takes twice as long with
    lengths as different as here. Its sampling also takes as long as the whole model.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs: list[list[int]] = [[] for _ in prompts]
    for rows in _batches_of_one_length(prompts, batch):
        ids = torch.tensor([list(prompts[row]) for row in rows])
        cache = DynamicCache(config=model.config)
        for _ in range(max_output_tokens):
            logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            picked = _pick(logits, temperature, generator)
            is_open = picked != END_ID
            if not is_open.all():
                kept = is_open.nonzero()[:, 0]
                rows, picked = [rows[place] for place in kept.tolist()], picked[kept]
                cache.batch_select_indices(kept)
            for row, token in zip(rows, picked.tolist(), strict=True):
                outputs[row].append(token)
            if not rows:
                break
            ids = picked[:, None]
    return outputs


def _batches_of_one_length(prompts: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Divide the numbers of the prompts into batches; what is of one length needs no padding."""
    left = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    while left:
        length = len(prompts[left[0]])
        rows = [number for number in left[:batch] if len(prompts[number]) == length]
        left = left[len(rows) :]
        yield rows


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    # NOTE: multinomial draws a number per token of the vocabulary, which costs as much as the model itself.
    heights = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    reached = heights[:, -1:] * torch.rand((len(heights), 1), generator=generator)
    return torch.searchsorted(heights, reached, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
