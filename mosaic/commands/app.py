"""The command `mosaic`: the options of its commands."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from mosaic import __version__
from mosaic.config.errors import BAD_INPUT_STATUS, INTERRUPTED_STATUS, exit_with_message
from mosaic.core.safe_text import printable

app = typer.Typer(
    name="mosaic",
    help="Mixture-of-Agents batches on few GPUs: plan, run, simulate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command that reads its arguments itself."""


Given = ParamSpec("Given")
Status = TypeVar("Status", int, None)


def ends_with_message(command: Callable[Given, Status]) -> Callable[Given, Status]:
    """Let a command end with a message where it fails or is interrupted: Typer would end it without a word."""

    @wraps(command)
    def run_command(*args: Given.args, **kwargs: Given.kwargs) -> Status:
        with exit_with_message():
            return command(*args, **kwargs)

    return run_command


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


@app.command()
@ends_with_message
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps or runs, searched for runs.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Scheduler, or full policy name as the table has it. "
            "[default: round_robin where it was run, with gate=never where gates differ]"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Time to compare: expert_makespan_s or end_to_end_s. "
            "[default: end_to_end_s where an aggregator runs, else expert_makespan_s]"
        ),
    ] = None,
    disturbed: Annotated[
        bool, typer.Option("--disturbed", help="Count runs that were interrupted or lost workers too.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where the files go. [default: the first folder]")] = None,
) -> None:
    """Compare run folders, paired by seed: speedups, time against accuracy, and times across numbers of GPUs."""
    from mosaic.commands.compare import compare as compare_runs

    compare_runs(folders, baseline, metric, disturbed=disturbed, out=out)


Models = Annotated[
    str | None, typer.Option(help="Checkpoints A,B,C by folder or Hugging Face name, or a LiteLLM model_list file.")
]
Aggregator = Annotated[
    str | None, typer.Option(help="Who merges: one of them, another checkpoint, or none. The largest by default.")
]
PerQuestion = Annotated[int | None, typer.Option(help="Models that answer each question: 3.", min=1)]
Workers = Annotated[int | None, typer.Option(help="All GPUs, or 2 groups of cores where there is none.", min=1)]
Checkpoints = Annotated[str, typer.Option(help="Where checkpoints lie that are not named by path.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE] [KEY=VALUE]...", help="A file of questions, and overrides as for `mosaic run`."),
]
Kinds = Annotated[list[str] | None, typer.Option(help="A file of conf/hardware; may be repeated.")]
KindPrices = Annotated[
    list[str] | None, typer.Option(metavar="KIND=DOLLARS", help="An hour of one GPU; may be repeated.")
]
PriceFile = Annotated[Path | None, typer.Option(help="JSON with the prices of kinds, each with its date.")]
QuoteFolder = Annotated[
    Path | None,
    typer.Option(
        "--folder", "--work", help="Of the pilot's journal. [default: results/multirun/quote/... or FILE.mosaic]"
    ),
]


@app.command()
@ends_with_message
def quote(
    words: Words = None,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, as 1-8 or 1,2,4.")] = "1-8",
    kind: Kinds = None,
    price: KindPrices = None,
    prices: PriceFile = None,
    deadline: Annotated[str | None, typer.Option(help="From now: seconds, or with min, h or d.")] = None,
    pilot: Annotated[int, typer.Option(help="Calls an expert, on average.")] = 128,
    folder: QuoteFolder = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what dominates, and what is unknown.")] = False,
    models: Models = None,
    aggregator: Aggregator = None,
    per_question: PerQuestion = None,
    workers: Workers = None,
    checkpoints: Checkpoints = "checkpoints",
    as_json: Annotated[bool, typer.Option("--json", help="The quote as JSON.")] = False,
) -> int:
    """Say how long a batch takes, and what it costs, on how many GPUs, from a pilot of its own calls.

    Exit status: 0 done, 2 bad input, 5 nothing meets the deadline, 130 stopped.
    """
    from mosaic.commands.quote import parse_sizes, prices_from, print_quote, quote_batch, split_words
    from mosaic.config.batch import BatchRequest
    from mosaic.quote.prices import parse_duration_s

    file, overrides = split_words(words or ())
    request = file and BatchRequest(
        path=file,
        models=models,
        aggregator=aggregator,
        per_question=per_question,
        workers=workers,
        checkpoints=checkpoints,
        overrides=overrides,
    )
    made = quote_batch(
        overrides,
        sizes=parse_sizes(gpus),
        kinds=kind or (),
        prices=prices_from(prices, price or ()),
        deadline_s=None if deadline is None else parse_duration_s(deadline),
        per_expert=pilot,
        folder=folder,
        request=request or None,
    )
    return print_quote(made, as_json=as_json, explain=explain)


@app.command(context_settings={"allow_interspersed_args": True})
@ends_with_message
def batch(
    file: Annotated[
        Path, typer.Argument(help="Questions: .jsonl (OpenAI's batch format too), .csv, .json or .parquet.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for `mosaic run`: pool=tiny, profile.path=FILE, ...")
    ] = None,
    models: Models = None,
    aggregator: Aggregator = None,
    per_question: PerQuestion = None,
    workers: Workers = None,
    on: Annotated[
        str | None,
        typer.Option(help="Where: ray (the cluster of this machine), or ray://HEAD. Here by default."),
    ] = None,
    checkpoints: Checkpoints = "checkpoints",
    price: Annotated[float | None, typer.Option(help="Dollars for a worker and an hour.", min=0)] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the journal: FILE with the suffix .mosaic.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the output: that of FILE.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port; 0: a free one.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address to serve metrics on; 0.0.0.0: every one of this machine.")
    ] = "127.0.0.1",
) -> int:
    """Answer a file of questions; the same command goes on after any interruption.

    Exit status: 0 complete, 2 bad input, 4 complete with errors, 6 it is running already, 130 stopped.
    """
    from mosaic.commands.batch import run_batch
    from mosaic.config.batch import BatchRequest

    request = BatchRequest(
        path=file,
        models=models,
        aggregator=aggregator,
        per_question=per_question,
        workers=workers,
        on=on,
        checkpoints=checkpoints,
        overrides=tuple(overrides or ()),
    )
    return run_batch(
        request, work=work, out=out, price_per_hour=price, metrics_port=metrics_port, metrics_host=metrics_host
    )


@app.command()
@ends_with_message
def audit(
    out: Annotated[Path, typer.Argument(help="What mosaic batch wrote: NAME.out.jsonl.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Code of your own and servers with keys, as the batch had them: aggregator.comparison=..."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Go on until no more than this share would change: 2%.")] = None,
    sample: Annotated[int, typer.Option(help="Questions of the first look; each look doubles them.", min=1)] = 100,
    most: Annotated[int | None, typer.Option(help="Questions that may be asked in all.", min=1)] = None,
    work: Annotated[Path | None, typer.Option(help="The batch's folder: NAME.mosaic.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers only.")] = False,
) -> int:
    """Say how many skipped questions would have another answer, had they been aggregated: a promise without gold.

    Exit status: 0 done, 2 bad input, 5 --until was not reached, 130 stopped.
    """
    from mosaic.commands.audit import run_audit

    return run_audit(
        out, work, until=until, sample=sample, most=most, overrides=tuple(overrides or ()), as_json=as_json
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, and end with its status; a bad option is bad input as any other."""
    with exit_with_message():
        try:
            status = app(arguments, standalone_mode=False)
        except typer.Abort:
            sys.exit(INTERRUPTED_STATUS)
        except Exception as error:
            describe = getattr(error, "format_message", None)  # of Typer's own errors, whose class has no public name
            if describe is None:
                raise
            print(printable(f"error: {' '.join(describe().split())}"), file=sys.stderr)
            sys.exit(BAD_INPUT_STATUS)
    sys.exit(status if isinstance(status, int) else 0)
