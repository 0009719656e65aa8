"""Run studies: measure what their tables lack, and write their pages and figures.

    python experiments/study.py --list                       all studies, a line each
    python experiments/study.py gates                        into results/multirun/gates
    python experiments/study.py gates --out results/gates    makes the committed files anew
    python experiments/study.py ablate_k ablate_load         several
    python experiments/study.py gates --draw                 page and figures from the tables that are there
    python experiments/study.py my_study.py                  a file of your own (docs/how-to/study.md)

A stopped study continues with its missing rows.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import typer
from cloudpickle import register_pickle_by_value

from experiments.lab.preset import preset_names, preset_study
from experiments.lab.study import Study, run_study
from mosaic.config.errors import exit_with_message
from mosaic.core.checks import require
from mosaic.report.run_folder import own_folder

STUDIES = Path(__file__).with_name("studies")


def find_studies() -> list[str]:
    """Name all studies: modules that define a STUDY, and presets that sweep."""
    modules = [path.stem for path in STUDIES.glob("*.py") if "\nSTUDY = " in path.read_text(encoding="utf-8")]
    return [*sorted(modules), *preset_names()]


def load_study(name: str) -> Study:
    """Import a study: one of ours by its name, or a file of one's own that defines a STUDY.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name.endswith(".py"):
        return _own_study(Path(name))
    require(name in find_studies(), "NAME", f"one of {find_studies()}", name)
    if name in preset_names():
        return preset_study(name)
    study: Study = import_module(f"experiments.studies.{name}").STUDY
    return study


def _own_study(path: Path) -> Study:
    require(path.is_file(), "NAME", "a study's name, or a file", str(path))
    sys.path.insert(0, str(path.resolve().parent))
    module = import_module(path.stem)
    register_pickle_by_value(module)  # worker processes do not find it
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise TypeError(f"{path}: STUDY must be an experiments.lab.study.Study, got {study!r}")
    return study


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Studies of --list, or files.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the files. [default: results/multirun/NAME]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each point. [default: the study's]")] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Measure nothing; write pages and figures again.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List all studies.")] = False,
) -> None:
    """Run studies: measure what their tables lack, and write their pages and figures."""
    with exit_with_message():
        if list_all:
            for name in find_studies():
                print(f"{name:<20} {load_study(name).about}")
            return
        require(bool(names), "NAME", f"one of {find_studies()}", None)
        for name, study in {name: load_study(name) for name in names or ()}.items():
            folder = out or own_folder(study.name)
            run_study(study, folder, argument=Path(name).name, num_seeds=seeds, draw_only=draw, show=print)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
