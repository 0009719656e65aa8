"""The command `mosaic`: one subcommand for each thing that a user does."""

import sys
from typing import Annotated

import typer

from mosaic import __version__

app = typer.Typer(
    name="mosaic",
    help="Mixture-of-Agents batches on few GPUs: plan, run, simulate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command that reads its arguments itself."""


def tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"mosaic {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Mixture-of-Agents batches on few GPUs: plan, run, simulate, compare."""


@app.command(context_settings=PASSED_ON)
def run(context: typer.Context) -> None:
    """Plan a batch and run the plan, simulated or on real engines, by Hydra overrides: mosaic run --help."""
    from experiments.run import run_command

    sys.argv = ["mosaic run", *context.args]
    run_command()


@app.command(context_settings=PASSED_ON)
def compare(context: typer.Context) -> None:
    """Compare the run folders of a sweep: mosaic compare --help."""
    from experiments.compare import main as compare_command

    raise typer.Exit(compare_command(context.args))


def main() -> None:
    """Run what the command line asks for."""
    app()
