"""Fit how the simulated experts and aggregators answer.

    python experiments/fit_answers.py                            answers.json, into results/multirun/fit_answers
    python experiments/fit_answers.py --out results/calibration  makes the committed file anew

MMLU-Pro's questions and aggregator are fitted to the published agreement, accuracy and tokens by agreement; the other
benchmarks get three numbers of their own questions.
conf/answers holds the values. Takes half a minute.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.answer_fit import Benchmark, draw_items, expect, fit_mmlu_pro, fit_questions  # noqa: E402
from experiments.studies.published import FITTED_ANSWERS  # noqa: E402
from mosaic.config.job import simulated  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402
from mosaic.core.lengths import ClippedLognormal  # noqa: E402
from sim.world.answer_model import AnswerModel  # noqa: E402

FILE = "answers.json"
WORKLOADS = ("mmlu_pro", "medmcqa", "gpqa")
ASSUMED_ABILITY = {"LlamaR1": 0.3, "QwenR1": 0.4, "Gemma": -0.1, "Exaone": -0.1, "GLM": -0.3, "Qwen": 0.1}
"""Logits above the mean: reasoning experts are somewhat abler. Not published."""
NUM_ROUNDS = 3
"""The fit of the length loading needs the questions' and theirs the loading, through the responses that are cut off."""


@cache
def benchmark(workload: str) -> Benchmark:
    """What a benchmark's expectations depend on."""
    job, site = simulated([f"workload={workload}"])
    difficulty, scores = draw_items(job.workload.questions, site.world.question_seed, site.world.stream)
    return Benchmark(
        slots=job.workload.num_calls_by_expert,
        aggregator=job.graph.upper_nodes[0].experts[0].name,
        lengths={name: entry for name, entry in site.world.lengths.items() if isinstance(entry, ClippedLognormal)},
        difficulty=difficulty,
        scores=scores,
    )


def fit_models(abilities: Mapping[str, float], factor: float = 1.0) -> dict[str, AnswerModel]:
    """Fit the answers of all benchmarks, the abilities multiplied by a factor."""
    model = AnswerModel(
        mean_ability=4.0,
        discrimination=2.5,
        distractor_std=2.0,
        length_loading=0.8,
        aggregator_gain=0.0,
        deference=0.7,
        aggregator_length_loading=0.8,
        ability_by_expert={name: factor * ability for name, ability in abilities.items()},
        source="fitted",
    )
    for _ in range(NUM_ROUNDS):
        model = fit_mmlu_pro(model, benchmark("mmlu_pro"))
    # NOTE: the aggregator's lengths follow the difficulty as the experts' do: no parameter of its own.
    model = replace(model, aggregator_length_loading=model.length_loading)
    models = {"mmlu_pro": model}
    for workload in WORKLOADS[1:]:
        models[workload] = fit_questions(model, benchmark(workload), FITTED_ANSWERS[workload])
    return models


def accuracy_sensitivity() -> dict[str, dict[str, list[float]]]:
    """Accuracy changes in pp at tau = 1 and 2/3 under other abilities than the assumed ones."""
    changes: dict[str, dict[str, list[float]]] = {}
    for factor in (0.0, 0.5, 1.0, 2.0):
        for workload, model in fit_models(ASSUMED_ABILITY, factor).items():
            expected = expect(model, benchmark(workload))
            row = [100 * expected.change_frac(num_skipped) for num_skipped in (1, 2)]
            changes.setdefault(workload, {})[f"{factor:g}"] = row
    return changes


def main() -> int:
    parser = argparse.ArgumentParser(prog="fit_answers", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=own_folder("fit_answers"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    models = fit_models(ASSUMED_ABILITY)
    print("answers fitted", flush=True)
    fitted: dict[str, Any] = {"benchmarks": {}, "accuracy_change_pp": accuracy_sensitivity()}
    for workload, model in models.items():
        parameters = {key: round(value, 4) for key, value in asdict(model).items() if isinstance(value, float)}
        fitted["benchmarks"][workload] = {"answers": parameters}
        print(workload, json.dumps(fitted["benchmarks"][workload]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / FILE).write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out / FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
