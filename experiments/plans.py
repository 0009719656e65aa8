"""What plans past the paper's program earn, and where they do not.

    python experiments/plans.py                        all studies, into results/multirun/plans
    python experiments/plans.py --only wrong_means     one of them
    python experiments/plans.py --out results/plans    makes the committed tables anew

wrong_means: true mean lengths off by independent factors, robust plans against the paper's.
cases: tensor-parallel degrees chosen by the program, and unlike GPUs, each against the plan without.
bounds: the true lower bounds, the peer and the paper's program, side by side.
They take about 15 minutes on 2 cores that are free.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.plan_bounds import bounds_table, chains_table  # noqa: E402
from experiments.studies.plan_cases import cases_table, run_cases  # noqa: E402
from experiments.studies.rows import Table, read_csv, to_csv, to_markdown  # noqa: E402
from experiments.studies.wrong_means import draws_table, run_draws, wrong_means_table  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402


def wrong_means(options: argparse.Namespace) -> Mapping[str, Table]:
    draws = []
    for draw in run_draws(options.draws, options.error):
        draws.append(draw)
        print(f"{draw.benchmark} {draw.policy} draw {draw.draw}: {draw.makespan_s:.1f} s", file=sys.stderr, flush=True)
    return {"wrong_means": wrong_means_table(draws), "wrong_means_draws": draws_table(draws)}


def bounds(options: argparse.Namespace) -> Mapping[str, Table]:
    return {"bounds": bounds_table(options.seeds), "chains": chains_table()}


def cases(options: argparse.Namespace) -> Mapping[str, Table]:
    outcomes = []
    for outcome in run_cases(options.seeds):
        outcomes.append(outcome)
        print(f"{outcome.case}, {outcome.workload}, {outcome.side}", file=sys.stderr, flush=True)
    return {"cases": cases_table(outcomes)}


STUDIES: Mapping[str, Callable[[argparse.Namespace], Mapping[str, Table]]] = {
    "wrong_means": wrong_means,
    "cases": cases,
    "bounds": bounds,
}
"""By name; each gives tables by the name of their file, the first of them to be shown."""


SECTIONS = {
    "wrong_means": """
## True means off by independent factors

Plans are made by a profile, and run in worlds where every expert's mean length is off by a log-uniform factor between
1/2 and 2 and the luck is another. Expert stage alone, four A100s. Intervals resample the draws. Regret is against the
same policy planned with the world's own means, on the first ten draws. `robust` minimises the mean of the worst fifth
of 28 scenarios (the quantile was chosen on other draws), and pays for it in the mean.
""",
    "cases": """
## Degrees and GPUs

Expert stage alone, one plan, the same worlds for every plan of a case. `memory at least` is the fullest that a worker
certainly was, as a share of what engines may take: no two sessions were on a worker at once, and the calls that ran
held so much. On the A100s, as they were fitted to vLLM 0.7.1, a gang is hardly faster than its GPUs apart, and the
program stays with one GPU a session.
""",
    "bounds": """
## True lower bounds, and the peer

Bounds know the true lengths; no plan is shorter. `bound: tokens` is what summaries report.
""",
    "chains": """
## Both layers

The bound counts chains of a proposal and its aggregation, and the work of both layers, the aggregator at the degree
that the run gave it.
""",
}
"""What the page says of each table."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="plans", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STUDIES, help="one study (default: all)")
    parser.add_argument("--draws", type=int, default=50, help="worlds of wrong means (default: %(default)s)")
    parser.add_argument("--error", type=float, default=2.0, help="most that a mean is off (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="of cases and bounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=own_folder("plans"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else STUDIES:
        tables = STUDIES[name](options)
        for stem, table in tables.items():
            (options.out / f"{stem}.csv").write_text(to_csv(table), encoding="utf-8")
        print(f"written: {', '.join(str(options.out / f'{stem}.csv') for stem in tables)}")
    page = _page(options.out)
    (options.out / "plans.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


def _page(folder: Path) -> str:
    """Put the tables that a folder has on one page."""
    parts = ["# Plans past the paper's program", "Made by `python experiments/plans.py --out results/plans`."]
    for stem, text in SECTIONS.items():
        path = folder / f"{stem}.csv"
        if path.exists():
            parts += [text, to_markdown(read_csv(path))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
