"""Fit how the simulated experts and aggregators answer, and how long the aggregators write.

    python experiments/fit_answers.py                            answers.json, into results/multirun/fit_answers
    python experiments/fit_answers.py --out results/calibration  makes the committed file anew

MMLU-Pro's questions and its aggregator are fitted to the published agreement, accuracy, tokens by agreement and the two
walls of its aggregator; the other benchmarks get three numbers of their own questions and one mean length.
conf/answers and conf/world hold the values. Takes about 4 minutes on 2 cores.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from joblib import Parallel, delayed  # noqa: E402

from experiments.config.job import simulated  # noqa: E402
from experiments.config.places import own_folder  # noqa: E402
from experiments.studies.aggregator_fit import fit_elasticity, fit_mean, fit_worlds  # noqa: E402
from experiments.studies.answer_fit import Benchmark, expect, fit_mmlu_pro, fit_questions  # noqa: E402
from experiments.studies.published import ALWAYS_AGGREGATE_S, FITTED_ANSWERS, FITTED_ELASTICITY_S  # noqa: E402
from mosaic.core.lengths import ClippedLognormal  # noqa: E402
from sim.world.answer_model import AnswerModel  # noqa: E402

FILE = "answers.json"
WORKLOADS = ("mmlu_pro", "medmcqa", "gpqa")
ASSUMED_ABILITY = {"LlamaR1": 0.3, "QwenR1": 0.4, "Gemma": -0.1, "Exaone": -0.1, "GLM": -0.3, "Qwen": 0.1}
"""Logits above the mean: reasoning experts are somewhat abler. Not published."""
NUM_ROUNDS = 3
"""The fit of the length loading needs the questions' and theirs the loading, through the responses that are cut off."""


def benchmark(workload: str) -> Benchmark:
    """What a benchmark's expectations depend on."""
    job, site = simulated([f"workload={workload}"])
    num_options = job.workload.questions[0].num_options
    assert num_options is not None
    return Benchmark(
        slots=job.workload.num_calls_by_expert,
        num_options=num_options,
        aggregator=job.graph.upper_nodes[0].experts[0].name,
        lengths={name: entry for name, entry in site.world.lengths.items() if isinstance(entry, ClippedLognormal)},
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
    # The aggregator's lengths follow the difficulty as the experts' do: no parameter of its own.
    model = replace(model, aggregator_length_loading=model.length_loading)
    models = {"mmlu_pro": model}
    for workload in WORKLOADS[1:]:
        models[workload] = fit_questions(model, benchmark(workload), FITTED_ANSWERS[workload])
    return models


def fit_lengths(workload: str, model: AnswerModel, elasticity: float) -> tuple[float, float]:
    """Means of the aggregator's lengths without and with the elasticity."""
    worlds = fit_worlds(workload, model)
    always_s = ALWAYS_AGGREGATE_S[workload]
    plain = fit_mean(worlds, model, always_s)
    return plain, fit_mean(worlds, replace(model, aggregator_elasticity=elasticity), always_s)


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
    first = models["mmlu_pro"]
    always_s, gated_s = ALWAYS_AGGREGATE_S["mmlu_pro"], FITTED_ELASTICITY_S
    elasticity = fit_elasticity(fit_worlds("mmlu_pro", first), first, always_s, gated_s).aggregator_elasticity
    print(f"elasticity {elasticity}", flush=True)
    means = Parallel(n_jobs=-1)(delayed(fit_lengths)(name, model, elasticity) for name, model in models.items())
    fitted: dict[str, Any] = {"elasticity": elasticity, "benchmarks": {}, "accuracy_change_pp": accuracy_sensitivity()}
    for (workload, model), (plain, elastic) in zip(models.items(), means, strict=True):
        parameters = {key: round(value, 4) for key, value in asdict(model).items() if isinstance(value, float)}
        parameters["aggregator_elasticity"] = elasticity
        fitted["benchmarks"][workload] = {
            "answers": parameters,
            "aggregator_mean": round(elastic, 1),
            "aggregator_mean_without_elasticity": round(plain, 1),
        }
        print(workload, json.dumps(fitted["benchmarks"][workload]))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / FILE).write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out / FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
