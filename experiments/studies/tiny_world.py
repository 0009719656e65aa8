"""What the simulator is told of a tiny pool: how long its models write, and how its experts agree.

    python -m experiments.studies.tiny_world checkpoints/tiny

Prints the text of conf/lengths/tiny.yaml, conf/answers/tiny.yaml and of the aggregator in conf/world/tiny_mcq.yaml. The
answers are one latent difficulty a question (sim/world/answer_model.py), fitted to five shares that the pool's own
table holds: of 3:0, of 1:1:1, and who is right where.
"""

import json
import sys
from collections.abc import Mapping
from math import exp, log
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from scipy.optimize import least_squares

from experiments.studies.answers import Benchmark, even_items, expect
from experiments.tiny_pool.prompts import JUDGE
from experiments.tiny_pool.questions import NUM_OPTIONS
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import ExpertName
from sim.world.answer_model import AnswerModel

VISIBLE_TOKENS = 6
"""Of a reasoning expert after its thinking: its closing sentence, the answer's and the end."""
_NEVER_CUT = ClippedLognormal(mean=50, sigma=0.1, clip_tokens=10**6)


def fit_answers(routed: Mapping[str, Any]) -> AnswerModel:
    """Fit the answers to a pool's table of routed questions."""
    shares = routed["slot_share"]
    abilities = relative_abilities(shares, routed["slots_right"])
    difficulty, scores = even_items(NUM_OPTIONS)
    benchmark = Benchmark(
        slots={name: round(10_000 * share) for name, share in shares.items()},
        aggregator=JUDGE.name,
        lengths=dict.fromkeys(shares, _NEVER_CUT),
        difficulty=difficulty,
        scores=scores,
    )
    wanted = (
        routed["division_share"]["3:0"], routed["division_share"]["1:1:1"], routed["majority_by_division"]["3:0"],
        routed["aggregator"]["all"], routed["aggregator_by_division"]["3:0"],
    )  # fmt: skip

    def model(x: NDArray[Any]) -> AnswerModel:
        return AnswerModel(
            mean_ability=float(x[0]), discrimination=exp(x[1]), distractor_std=exp(x[2]), length_loading=0.0,
            aggregator_gain=float(x[3]), deference=exp(x[4]), aggregator_length_loading=0.0,
            ability_by_expert=abilities, source="fitted",
        )  # fmt: skip

    def errors(x: NDArray[Any]) -> list[float]:
        got = expect(model(x), benchmark)
        found = (
            got.bucket_frac[0], got.bucket_frac[2], got.majority_right_frac[0],
            got.always_accuracy_frac, got.aggregator_right_frac[0],
        )  # fmt: skip
        return [one - other for one, other in zip(found, wanted, strict=True)]

    fitted = least_squares(errors, [4.0, 0.9, 0.3, 0.5, 0.0], bounds=(-5, 15))
    return model(fitted.x)


def relative_abilities(shares: Mapping[ExpertName, float], right: Mapping[str, float]) -> dict[ExpertName, float]:
    """Return the log-odds of an expert's answer being right where it was asked, above the mean slot's.

    Examples
    --------
    >>> relative_abilities({"A": 0.5, "B": 0.5}, {"A": 0.5, "B": 0.5})
    {'A': 0.0, 'B': 0.0}
    """
    odds = {name: log(right[name] / (1 - right[name])) for name in shares}
    mean = sum(share * odds[name] for name, share in shares.items()) / sum(shares.values())
    return {name: round(value - mean, 2) for name, value in odds.items()}


def describe(manifest: Mapping[str, Any]) -> str:
    """Write what the configuration holds of a pool."""
    routed = manifest["results"]["routed"]
    lines = ["# conf/lengths/tiny.yaml"]
    for name in manifest["results"]["experts"]:
        written = routed["output_tokens"].get(name) or manifest["results"]["experts"][name]["output_tokens"]
        lines.append(f"{name}: {{source: measured, sample: {written['sample']}}}")
    lines += ["# conf/world/tiny_mcq.yaml", f"sample: {routed['aggregator_output_tokens']['sample']}"]
    model = fit_answers(routed)
    lines.append("# conf/answers/tiny.yaml")
    for key in ("mean_ability", "discrimination", "distractor_std", "aggregator_gain", "deference"):
        lines.append(f"{key}: {{value: {getattr(model, key):.4f}, source: fitted}}")
    lines += [f"  {name}: {{value: {value}, source: fitted}}" for name, value in model.ability_by_expert.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(json.loads((Path(sys.argv[1]) / "manifest.json").read_text(encoding="utf-8"))))
