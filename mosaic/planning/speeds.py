"""How fast an engine decodes: what prices the rest of a session under way."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mosaic.core.checks import require_number

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """An iteration that decodes n sequences with k tokens of context in all takes base_s + per_seq_s n + per_kv_s k."""

    base_s: float
    per_seq_s: float
    per_kv_s: float
    read_s: float
    """A token of a prompt, or of what a call that is moved has written."""

    def __post_init__(self) -> None:
        for name in ("base_s", "per_seq_s", "per_kv_s", "read_s"):
            require_number(getattr(self, name), f"speed: {name}", at_least=0)

    def step_s(self, num_seqs: float, kv_tokens: float = 0.0) -> float:
        """Predict an iteration."""
        return self.base_s + self.per_seq_s * num_seqs + self.per_kv_s * kv_tokens
