"""What each change of the simulator's model does to the walls, everything that is fitted being fitted anew.

    python experiments/ablate_model.py                             into results/multirun/ablate_model
    python experiments/ablate_model.py --out results/calibration   makes the committed table anew

Writes model_ablation.csv, which the reproduction's report shows (experiments/paper.py). Takes about 15 minutes on 2
cores.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.calibrate import SETS  # noqa: E402
from experiments.config.places import own_folder  # noqa: E402
from experiments.studies.fitted_set import FittedSet  # noqa: E402
from experiments.studies.model_ablation import ablate, ablation_table  # noqa: E402
from experiments.studies.paper_tables import to_csv, to_markdown  # noqa: E402

COMMITTED = ROOT / "results" / "calibration" / SETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="ablate_model", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="luck of the runs, by row (default: %(default)s)")
    parser.add_argument("--fit-seeds", type=int, default=6, help="luck that fits see (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=own_folder("ablate_model"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    first = FittedSet.from_json(json.loads(COMMITTED.read_text(encoding="utf-8"))[0])
    rows = ablate(first.parameters, num_fit_seeds=options.fit_seeds, num_seeds=options.seeds)
    table = ablation_table(rows, num_fit_seeds=options.fit_seeds, num_seeds=options.seeds)
    (options.out / "model_ablation.csv").write_text(to_csv(table), encoding="utf-8")
    print(to_markdown(table))
    print(f"written: {options.out / 'model_ablation.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
