"""Show that budgets and hedge keep their promise, jointly with the gate, in worlds whose losses are known.

    python experiments/budgets.py                            into results/multirun/budgets
    python experiments/budgets.py --out results/calibration  makes the committed files anew

Writes budgets.txt and budgets.json; takes 6 to 15 minutes on 2 cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from joblib import Parallel, delayed  # noqa: E402

from experiments.studies.budget_worlds import (  # noqa: E402
    ACCEPTED_FRAC,
    BENCHMARKS,
    CHANGES,
    BudgetTrials,
    draw_table,
    draw_uninformative,
    simulate_budgets,
)
from experiments.studies.gate_populations import ADVERSARIAL_WORKLOAD  # noqa: E402
from experiments.studies.gate_trials import RISK_FRAC  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402

COMMAND = "python experiments/budgets.py"
UNINFORMATIVE = "agreement uninformative"
LINE_CHARS = 118


def make_trials(
    worlds: Sequence[tuple[str, str]], nums_questions: Sequence[int], num_drawn: int, num_calibrations: int
) -> list[BudgetTrials]:
    """Calibrate in every world, a benchmark each, with every number of questions."""

    def trials(world: str, workload: str) -> list[BudgetTrials]:
        table = (
            draw_uninformative(num_drawn) if world == UNINFORMATIVE else draw_table(workload, num_drawn, CHANGES[world])
        )
        return [simulate_budgets(table, world, workload, number, num_calibrations) for number in nums_questions]

    found = Parallel(n_jobs=-1)(delayed(trials)(*world) for world in worlds)
    return [one for some in found for one in some]


def report(trials: Sequence[BudgetTrials], num_drawn: int) -> str:
    """Say what came of the calibrations."""
    num, limit = trials[0].num_calibrations, trials[0].max_broken
    text = (
        "Gate, budgets and hedge chosen together on calibration questions that are drawn from populations of "
        f"{num_drawn:,} simulated questions. The loss of a setting is its mean over the population, known exactly, the "
        "worse of the two ways counted where a late call may end in time. A promise is broken where it is above the "
        f"accepted {100 * ACCEPTED_FRAC:g} pp: at {1 - RISK_FRAC:.0%} confidence at most {limit} times in {num:,} "
        "calibrations (the 99% limit of the binomial). Steps are decode steps as the choice estimates them, relative "
        "to always aggregating whole responses; agreement and lengths are FITTED, or changed as the world says."
    )
    misses = sum(of.num_broken > of.max_broken for of in trials)
    kept = f"MISS: {misses} lines are above" if misses else "all within"
    lines = [COMMAND, "", *wrap(text, LINE_CHARS), ""]
    lines += [f"Promises: {len(trials)} lines of {num:,} calibrations, {kept} the limit of {limit}", ""]
    lines += ["world                           benchmark  questions  certify  broken  nothing promised  steps"]
    lines += [
        f"{of.world:<31} {of.workload:<9}  {of.num_questions:9,}  {of.num_certify:7,}  {of.num_broken:6,}  "
        f"{of.refused_frac:16.1%}  {of.steps_frac:.2f}" + ("" if of.num_broken <= of.max_broken else "  MISS")
        for of in trials
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="budgets", description=__doc__.splitlines()[0])
    parser.add_argument("--drawn", type=int, default=40_000, help="questions of each population")
    parser.add_argument("--questions", type=int, nargs="+", default=[2_000, 10_000], help="of a calibration")
    parser.add_argument("--calibrations", type=int, default=2_000, help="of each line of the report")
    parser.add_argument("--out", type=Path, default=own_folder("budgets"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    worlds = [("fitted", workload) for workload in BENCHMARKS] + [(UNINFORMATIVE, ADVERSARIAL_WORKLOAD)]
    worlds += [(world, workload) for world in CHANGES if world != "fitted" for workload in BENCHMARKS]
    trials = make_trials(worlds, options.questions, options.drawn, options.calibrations)
    text = report(trials, options.drawn)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "budgets.txt").write_text(text, encoding="ascii")
    data = {"command": COMMAND, "num_drawn": options.drawn, "lines": [asdict(of) for of in trials]}
    (options.out / "budgets.json").write_text(json.dumps(data, indent=1) + "\n", encoding="ascii")
    print(text)
    print(f"written: {options.out / 'budgets.txt'}, budgets.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
