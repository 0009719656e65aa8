"""Solve the paper's formulation with CP-SAT: a program of its own, for a Python that has OR-Tools and nothing else.

It reads ``{"problem": ..., "time_limit_s": ..., "num_threads": ...}`` on its standard input and writes the outcome as
JSON. Prices are whole multiples of 0.1 ms in these problems, so its whole numbers are exact.

References
----------
MOSAIC, arXiv 2606.03014, equations 4 to 10; CP-SAT is the solver that the paper uses.
"""

import json
import sys
from time import monotonic, process_time
from typing import Any

UNITS_PER_S = 10_000


def solve(problem: dict[str, Any], time_limit_s: float, num_threads: int) -> dict[str, Any]:
    """Build and solve the program; both count against the time limit."""
    from ortools.sat.python import cp_model

    begin_ts, begin_cpu_s = monotonic(), process_time()
    model = cp_model.CpModel()
    workers, num_calls = range(problem["num_workers"]), problem["num_calls"]
    load, per_call = ([round(cost * UNITS_PER_S) for cost in problem[key]] for key in ("load_s", "per_call_s"))
    calls = [[model.new_int_var(0, n, "") for _ in workers] for n in num_calls]
    placed = [[model.new_bool_var("") for _ in workers] for _ in num_calls]
    for n, xs, ys, cap in zip(num_calls, calls, placed, problem["max_replicas"], strict=True):
        model.add(sum(xs) == n)  # equation 5
        for x, y in zip(xs, ys, strict=True):
            model.add(x <= n * y)  # equation 6
        model.add_linear_constraint(sum(ys), 1, cap)  # equation 7
    longest = sum(a + b * n for a, b, n in zip(load, per_call, num_calls, strict=True))
    makespan = model.new_int_var(0, longest, "")
    for w in workers:
        model.add(sum(ys[w] for ys in placed) <= problem["max_experts_per_worker"])  # equation 9
        busy = sum(a * ys[w] + b * xs[w] for a, b, xs, ys in zip(load, per_call, calls, placed, strict=True))
        model.add(busy <= makespan)  # equations 4 and 10
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, time_limit_s - (monotonic() - begin_ts))
    solver.parameters.num_workers = num_threads
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return {
        "counts": [[solver.value(x) for x in row] for row in calls] if found else None,
        "bound_s": solver.best_objective_bound / UNITS_PER_S,
        "wall_s": monotonic() - begin_ts,
        "cpu_s": process_time() - begin_cpu_s,
    }


if __name__ == "__main__":
    json.dump(solve(**json.load(sys.stdin)), sys.stdout)
