"""FlexiCache's choice of pages for all steps of a layer at once: what real engines do step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.kv_heads.attention import Layer, fresh_pages, num_pages_of
from mosaic.core.workload import SparseKv
from mosaic.engines.sparse_attention import UnstableHeads, tokens_of


@dataclass(frozen=True)
class FlexiCacheReader:
    """Reads the pages that FlexiCache's heads choose."""

    kv: SparseKv
    unstable: UnstableHeads

    def __call__(self, number: int, layer: Layer) -> Tensor:
        pages = fresh_pages(layer, self.kv.budget_pages)
        num_steps, num_heads, num_pages = pages.shape
        unstable = self.unstable.of_layer(number)
        stable = [head for head in range(num_heads) if head not in unstable]
        ranked_at = torch.arange(num_steps) // self.kv.rerank_every * self.kv.rerank_every
        old = pages[ranked_at][:, stable]
        is_newer = torch.arange(num_pages) >= num_pages_of(layer)[ranked_at][:, None]
        pages[:, stable] = old | is_newer[:, None]
        return tokens_of(pages, layer.keys.shape[1])
