"""Sweep sessions on calibration questions and fit what a session costs.

    python experiments/profile.py workload=mmlu_pro out=mmlu_pro.json
    python experiments/run.py profile.path=mmlu_pro.json

Takes the overrides of run.py (the sweep is profile.sweep) and writes one JSON file: the fitted costs with their
residuals, the points behind them and the sample of output lengths, which workload.output_tokens can draw from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.complaints import exit_with_message
from experiments.wiring import compose_config, setup_from
from mosaic.profiles import Profile, write_profile


def describe(profile: Profile) -> str:
    """Lay out the fitted costs, an expert a line."""
    head = f"{'expert':<12}{'load s':>8}{'fixed s':>10}{'s per call':>12}{'residual':>10}{'mean tokens':>13}{'max':>8}"
    rows = [
        f"{entry.expert:<12}{entry.load_s:8.1f}{entry.fit.fixed_s:10.1f}{entry.fit.per_call_s:12.4f}"
        f"{entry.fit.residual_std_frac:10.1%}{entry.lengths.mean:13,.0f}{entry.lengths.max:8,.0f}"
        for entry in profile.entries
    ]
    return "\n".join([profile.source, head, *rows])


def main(arguments: list[str]) -> None:
    """Measure a profile; the arguments are Hydra overrides and out=FILE.json."""
    out = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    overrides = [argument for argument in arguments if not argument.startswith("out=")]
    if len(out) != 1 or not out[0]:
        raise ValueError(f"expected overrides and one out=FILE.json, got {arguments}")
    profile = setup_from(compose_config([*overrides, "profile.path=null"])).profile()
    write_profile(profile, Path(out[0]))
    print(describe(profile))
    print(f"written: {out[0]} (use it with profile.path={out[0]})")


if __name__ == "__main__":
    with exit_with_message():
        main(sys.argv[1:])
