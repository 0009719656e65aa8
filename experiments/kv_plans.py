"""Plans that choose KV caches: what they gain, who gains it, and what the gate shows of what they lose.

    python experiments/kv_plans.py                            all of it, into results/multirun/kv_plans
    python experiments/kv_plans.py --out results/kv_plans     makes the committed ones anew
    python experiments/kv_plans.py --page --out FOLDER        page and figure from the tables of a folder

About 4 minutes on one core.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.config.places import own_folder, write_file  # noqa: E402
from experiments.lab.style import pdf_bytes, png_bytes  # noqa: E402
from experiments.studies.kv_monitor import Seen, watch  # noqa: E402
from experiments.studies.kv_plans import POLICIES, ExpertRun, PlanRun, PlanShape, prepare, run_plans, shape_of_plan  # noqa: E402
from experiments.studies.kv_plans_report import WATCHED, figure, read_tables, report  # noqa: E402
from experiments.studies.rows import rows_csv  # noqa: E402


def study(folder: Path, num_seeds: int) -> None:
    """Plan, run and watch, and write what comes of it as tables."""
    policies = {policy: prepare(policy) for policy in POLICIES}
    shapes = [shape_of_plan(policy, prepared) for policy, prepared in policies.items()]
    write_file(folder / "plans.csv", rows_csv(PlanShape, shapes))
    seen = watch(policies[WATCHED].plan, num_seeds)
    write_file(folder / "monitor.csv", rows_csv(Seen, seen))
    runs: list[PlanRun] = []
    experts: list[ExpertRun] = []
    for run, by_expert in run_plans(policies, num_seeds):
        runs.append(run)
        experts += by_expert
        print(f"{run.policy}, seed {run.seed}: {run.expert_stage_s:.1f} s", file=sys.stderr, flush=True)
    write_file(folder / "runs.csv", rows_csv(PlanRun, runs))
    write_file(folder / "experts.csv", rows_csv(ExpertRun, experts))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kv_plans", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="of the runs (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="page and figure alone, from tables that are there")
    parser.add_argument("--out", type=Path, default=own_folder("kv_plans"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not options.page:
        study(options.out, options.seeds)
    tables = read_tables(options.out)
    drawn = figure(tables)
    write_file(options.out / "kv_plans.md", report(tables))
    write_file(options.out / "kv_plans.png", png_bytes(drawn))
    write_file(options.out / "kv_plans.pdf", pdf_bytes(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
