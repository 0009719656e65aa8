"""Models the routed experts of a sparse model: how many a batch reads, and their time on GPUs that share them.

These are the experts inside a mixture-of-experts model, not those of a pool.
"""

from mosaic.core.workload import ModelShape
from sim.hardware.curves import Grid
from sim.hardware.hardware import OperatorTable


def distinct_experts(num_tokens: float, num_experts: int, num_active: int) -> float:
    """Count the experts of a layer that get any of so many tokens, as the mean under uniform routing.

    Each token misses an expert with probability 1 - k/E, independently of the others. Trained routers prefer some
    experts, and then fewer get any.

    References
    ----------
    Stadje, "The collector's problem with group drawings", Advances in Applied Probability 22 (1990).

    Examples
    --------
    >>> [round(distinct_experts(n, 128, 8), 1) for n in (1, 2, 16, 64)]
    [8.0, 15.5, 82.4, 125.9]
    """
    missed_frac: float = (1.0 - num_active / num_experts) ** num_tokens
    return num_experts * (1.0 - missed_frac)


class ExpertLayers:
    """Time that the routed experts of all layers take in an iteration.

    NOTE: GPUs of a session share the experts evenly, each has whole ones (expert parallelism), and each has all tokens
    of the session. With uniform routing a GPU gets its share of the pairs of token and expert, and of the experts that
    get any. The slowest GPU is assumed to equal the mean one.
    """

    def __init__(self, table: OperatorTable, shape: ModelShape, num_gpus: int) -> None:
        assert table.experts is not None, "checked by the table"
        reference = table.shape
        scale = shape.num_layers * shape.num_expert_parameters / reference.num_expert_parameters
        self._grid: Grid = table.experts.scaled(scale)
        self._token_s = self._grid.values_s[-1][0] / self._grid.rows[-1]
        """Time per token when each expert has so many tokens that reading weights is hidden by the products."""
        self._num_experts = shape.num_experts
        self._num_active = shape.num_active_experts
        self._tokens_per_token = shape.num_active_experts / reference.num_active_experts / num_gpus
        """Tokens of the table with as many pairs as one token has here, on each GPU."""
        self._num_gpus = num_gpus
        self._known_s: dict[int, float] = {}

    def __call__(self, num_tokens: int) -> float:
        """Price an iteration that computes so many tokens, of all ranks together."""
        seconds = self._known_s.get(num_tokens)
        if seconds is None:
            tokens = num_tokens * self._tokens_per_token
            experts = distinct_experts(num_tokens, self._num_experts, self._num_active) / self._num_gpus
            seconds = self._known_s[num_tokens] = max(self._grid(tokens, experts), self._token_s * tokens)
        return seconds
