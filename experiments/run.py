"""Plan a Mixture-of-Agents batch and run the plan; the same as `mosaic run`.

python experiments/run.py scheduler=ilp backend=sim
python experiments/run.py -m hydra/launcher=joblib scheduler=ilp,round_robin seed=0,1,2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from mosaic.commands.run import run_command

if __name__ == "__main__":
    run_command()
