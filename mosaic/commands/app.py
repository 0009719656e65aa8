"""The command `mosaic`: each of its commands is the function in the module of its name, imported when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mosaic import __version__
from mosaic.config.errors import BAD_INPUT_STATUS, exit_with_message
from mosaic.core.safe_text import printable

IN_MODULES = ("compare", "quote", "batch", "audit")
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command that reads its arguments itself."""

app = typer.Typer(name="mosaic", add_completion=False)


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
    from mosaic.commands.run import run_command

    sys.argv = ["mosaic run", *context.args]
    run_command()


def command_of(word: str) -> TyperGroup:
    """Make the command from the module that a word names; where it names none, from all: for help, and for a slip."""
    made = get_command(app)
    assert isinstance(made, TyperGroup)
    modules = [word] if word in IN_MODULES else [] if word in ("run", "--version") else IN_MODULES
    for name in modules:
        single = typer.Typer(add_completion=False)
        single.command(name)(getattr(import_module(f"mosaic.commands.{name}"), name))
        made.add_command(get_command(single), name)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, and end with its status; a bad option is bad input as any other."""
    words = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    command = command_of(words[0])
    # NOTE: `command.main` would end an interrupt without a word.
    with exit_with_message():
        try:
            with command.make_context("mosaic", words) as context:
                status = command.invoke(context)
        except typer.Exit as stop:
            status = stop.exit_code
        except Exception as error:
            describe = getattr(error, "format_message", None)  # of Typer's own errors, whose class has no public name
            if describe is None:
                raise
            print(printable(f"error: {' '.join(describe().split())}"), file=sys.stderr)
            status = BAD_INPUT_STATUS
    sys.exit(status or 0)
