"""Run every ablation, one sweep after the other, and keep each figure with its table and text.

    python experiments/ablations.py                          all presets conf/experiment/ablate_*.yaml
    python experiments/ablations.py --out results/ablations  makes the committed files anew
    python experiments/ablations.py ablate_k ablate_load     some of them
    python experiments/ablations.py ablate_k seed=0,1        with Hydra's overrides, KEY=VALUE
    python experiments/ablations.py --draw results/multirun/ablate_k    draw a finished sweep again

A sweep runs its points in parallel below results/multirun/ and, started again, skips the complete ones. What it drew is
copied into results/multirun/ablations unless --out names another folder.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.config.compose import CONF
from experiments.config.errors import exit_with_message
from experiments.config.places import SWEEPS, own_folder
from experiments.studies.ablation_sweep import FILES, SUFFIXES, draw_finished
from mosaic.core.checks import require

RUN = Path(__file__).with_name("run.py")


def preset_names() -> list[str]:
    """List the presets of the project."""
    return sorted(path.stem for path in (CONF / "experiment").glob("ablate_*.yaml"))


def run_presets(names: Sequence[str], overrides: Sequence[str], out: Path) -> list[str]:
    """Run sweeps one after the other, saying how long each took; return those that failed, in part or whole."""
    out.mkdir(parents=True, exist_ok=True)
    failed, begin_s = [], time.perf_counter()
    for number, name in enumerate(names, start=1):
        start_s = time.perf_counter()
        command = [sys.executable, str(RUN), f"+experiment={name}", *overrides]
        # NOTE: a process for each, since Hydra and its workers are made for one application a process.
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        keep_files(SWEEPS / name, out, name)
        print(f"{number:2d}/{len(names)}  {name:<22} {time.perf_counter() - start_s:6.1f} s", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stderr.strip(), file=sys.stderr)
    print(f"{'total':<29} {time.perf_counter() - begin_s:6.1f} s   {out}")
    return failed


def keep_files(sweep: Path, out: Path, name: str) -> None:
    """Copy what a sweep drew; a sweep removes the files of an earlier one when it starts."""
    for file, suffix in zip(FILES, SUFFIXES, strict=True):
        if (sweep / file).is_file():
            shutil.copyfile(sweep / file, out / f"{name}{suffix}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run presets, or draw finished sweeps again; a failure ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET | KEY=VALUE", help="default: all presets")
    parser.add_argument(
        "--draw", nargs="+", type=Path, metavar="FOLDER", help="draw finished sweeps again, run nothing"
    )
    parser.add_argument("--out", type=Path, default=own_folder("ablations"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    with exit_with_message():
        if options.draw:
            for folder in options.draw:
                print(draw_finished(folder), end="")
            return 0
        overrides = [entry for entry in options.presets if "=" in entry]
        names = [entry for entry in options.presets if "=" not in entry] or preset_names()
        for name in names:
            require(name in preset_names(), "PRESET", f"one of {preset_names()}", name)
        for entry in overrides:
            rule = f"one that leaves the sweeps in {SWEEPS}, where figures are collected"
            require(not entry.startswith("hydra.sweep."), "KEY=VALUE", rule, entry)
        return 2 if run_presets(names, overrides, options.out) else 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
