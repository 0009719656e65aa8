"""Solve placement problems from 12 experts on 8 GPUs to 200 on 256, beside CP-SAT on the paper's formulation.

    python experiments/solve_scale.py --cp-sat .cp-sat/bin/python                       into results/multirun/solver
    python experiments/solve_scale.py --cp-sat .cp-sat/bin/python --out results/solver  makes the committed files anew

CP-SAT runs in a process of its own, by a Python that has OR-Tools (it wants another protobuf than vLLM):

    python3 -m venv .cp-sat && .cp-sat/bin/pip install ortools==9.15.6755

Without --cp-sat only mosaic's solver runs. --problems FOLDER adds the files placement_*.json in there. Solvers take
turns, each alone, on 20 drawn problems of every size; each outcome is kept as soon as it is there (outcomes.jsonl), and
the same command goes on where it stopped: remove that file to measure anew. Writes outcomes.jsonl and solver.md; takes
70 minutes on 2 cores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.placement_instances import PlacementProblem, draw_problem, read_problem  # noqa: E402
from experiments.studies.solver_scale import (  # noqa: E402
    CP_SAT,
    MOSAIC,
    SIZES,
    Outcome,
    Size,
    contradictions,
    keep_outcome,
    read_outcomes,
    solve_by_cp_sat,
    solve_by_mosaic,
    table_lines,
)
from mosaic.config.places import own_folder  # noqa: E402

COMMAND = "python experiments/solve_scale.py"
NUM_CP_SAT_THREADS = 2
ABOUT = f"""\
# Solvers on placement problems

`{COMMAND} --cp-sat .cp-sat/bin/python --out results/solver`

Equations 4 to 10 of the paper, K = 3, caps by equation 8. The gap is between a solver's own placement and its own
bound; makespans are priced anew from the shards. mosaic (what `scheduler=ilp` uses) runs on one thread; CP-SAT has the
paper's formulation and {NUM_CP_SAT_THREADS} threads, in a process of its own. Limits are on wall time, building the
programs included. Where CPU seconds are far below the wall's, the machine had other work. Files given by `--problems`
are counted with the drawn problems.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    options = _options(arguments)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "outcomes.jsonl"
    chosen = [size for size in SIZES if options.sizes is None or size.name.replace(" ", "") in options.sizes]
    for size in chosen:
        for problem in _problems(size, options.problems, options.drawn):
            for solver in (MOSAIC, CP_SAT) if options.cp_sat else (MOSAIC,):
                if not _is_kept(read_outcomes(kept), size, problem, solver):
                    outcome = _solve(problem, size, solver, options.cp_sat)
                    keep_outcome(kept, outcome)
                    print(
                        f"{size.name}, {problem.label}, {solver}: gap {outcome.gap_frac:.2%} in {outcome.wall_s:.1f} s"
                    )
    outcomes = read_outcomes(kept)
    wrong = contradictions(outcomes)
    verdict = "\n".join(wrong) if wrong else "No bound of one is above a placement of the other."
    (folder / "solver.md").write_text("\n".join([ABOUT, *table_lines(outcomes), "", verdict, ""]))
    print("\n".join(table_lines(outcomes)), verdict, sep="\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cp-sat", type=Path, help="a Python that has OR-Tools")
    parser.add_argument("--problems", type=Path, help="a folder with files placement_*.json")
    parser.add_argument("--drawn", type=int, default=20, help="problems drawn of each size")
    names = [size.name.replace(" ", "") for size in SIZES]
    parser.add_argument("--sizes", nargs="+", choices=names, help="some sizes only")
    parser.add_argument("--out", type=Path, default=None, help="a folder")
    options = parser.parse_args(arguments)
    options.out = options.out or own_folder("solver")
    return options


def _problems(size: Size, folder: Path | None, num_drawn: int) -> list[PlacementProblem]:
    read = [read_problem(path) for path in sorted(folder.glob("placement_*.json"))] if folder else []
    drawn = [draw_problem(size.num_experts, size.num_workers, seed) for seed in range(num_drawn)]
    return [problem for problem in read if problem.size == size.name] + drawn


def _is_kept(outcomes: Sequence[Outcome], size: Size, problem: PlacementProblem, solver: str) -> bool:
    return any((kept.size, kept.problem, kept.solver) == (size.name, problem.label, solver) for kept in outcomes)


def _solve(problem: PlacementProblem, size: Size, solver: str, cp_sat: Path) -> Outcome:
    if solver == MOSAIC:
        return solve_by_mosaic(problem, size)
    return solve_by_cp_sat(problem, size, python=cp_sat, num_threads=NUM_CP_SAT_THREADS)


if __name__ == "__main__":
    main()
