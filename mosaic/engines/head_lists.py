"""Which KV heads of a model are unstable: lists that the profiler writes and engines read."""

import json
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.checks import require, require_count
from mosaic.core.errors import BackendError
from mosaic.core.json_file import read_json
from mosaic.core.workload import SparseKv


@dataclass(frozen=True, slots=True)
class UnstableHeads:
    """Pairs of layer and KV head, in order."""

    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        pairs = tuple(sorted((layer, head) for layer, head in self.pairs))
        object.__setattr__(self, "pairs", pairs)
        for layer, head in pairs:
            require_count(layer, "unstable heads: layer")
            require_count(head, "unstable heads: head")
        require(len(set(pairs)) == len(pairs), "unstable heads: pairs", "distinct", pairs)

    def of_layer(self, layer: int) -> tuple[int, ...]:
        """List those of a layer."""
        return tuple(head for at, head in self.pairs if at == layer)


def spread_heads(kv: SparseKv, num_layers: int, num_kv_heads: int) -> UnstableHeads:
    """Take as many heads as a policy wants, at equal distances over the model: for who has no profile of it.

    Examples
    --------
    >>> spread_heads(SparseKv(unstable_frac=0.25), 4, 2).pairs
    ((0, 0), (2, 0))
    """
    total = num_layers * num_kv_heads
    number = kv.num_unstable(total)
    return UnstableHeads(tuple(divmod(place * total // number, num_kv_heads) for place in range(number)))


def write_heads(path: Path, heads: UnstableHeads) -> None:
    """Write a list as JSON: an object with the pairs of layer and KV head."""
    path.write_text(json.dumps({"pairs": heads.pairs}) + "\n", encoding="utf-8")


def read_heads(path: Path, kv: SparseKv, num_layers: int, num_kv_heads: int) -> UnstableHeads:
    """Read a list, for a model of this many layers and heads.

    Raises
    ------
    BackendError
        If the file is no such list.
    ValueError
        If it is of another model, or holds another number of heads than the policy says.
    """
    label = "expert.kv: heads"
    heads = read_json(path, UnstableHeads, label, BackendError)
    for layer, head in heads.pairs:
        rule = f"below {num_layers} layers of {num_kv_heads} KV heads"
        require(layer < num_layers and head < num_kv_heads, f"{label} {path}: pair", rule, [layer, head])
    number = kv.num_unstable(num_layers * num_kv_heads)
    rule = f"{number} pairs, as unstable_frac={kv.unstable_frac:g} says"
    require(len(heads.pairs) == number, f"{label} {path}", rule, len(heads.pairs))
    return heads
