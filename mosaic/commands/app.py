"""The command line of `mosaic`: every command with its options.

A command imports the module that does its work when it is called: `mosaic --help` loads none of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

import mosaic
from mosaic.config.errors import BAD_INPUT_STATUS, exit_with_message
from mosaic.core.safe_text import printable

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command that reads its arguments itself."""

Models = Annotated[
    str | None,
    typer.Option(help="Checkpoints A,B,C by folder or Hugging Face name, names at --server, or a LiteLLM file."),
]
Servers = Annotated[
    list[str] | None,
    typer.Option("--server", metavar="URL", help="An OpenAI-compatible server that has the models; may be repeated."),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Variable that holds the servers' key. [default: OPENAI_API_KEY, for https]"),
]
RequestsPerMin = Annotated[int | None, typer.Option("--rpm", help="Most requests per minute and model.", min=1)]
TokensPerMin = Annotated[int | None, typer.Option("--tpm", help="Most tokens per minute and model.", min=1)]
MaxRequests = Annotated[int | None, typer.Option(help="Send servers no more requests in all, retries included.", min=1)]
MaxCost = Annotated[float | None, typer.Option(metavar="DOLLARS", help="Spend no more on servers in all.", min=0)]
Aggregator = Annotated[
    str | None,
    typer.Option(
        help="The aggregator: one of them, another one, or none. [default: the largest; on servers the first]"
    ),
]
PerQuestion = Annotated[int | None, typer.Option(help="Models that answer each question: 3.", min=1)]
Workers = Annotated[int | None, typer.Option(help="All GPUs, or 2 groups of cores where there is none.", min=1)]
Checkpoints = Annotated[str, typer.Option(help="Folder of checkpoints that are not given by path.")]
QuestionColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column or key of the questions. [default: question, prompt, ...]")
]
Answers = Annotated[
    str | None, typer.Option(metavar="KIND", help="How answers compare: number, choice or text. Guessed by default.")
]
Limit = Annotated[int | None, typer.Option(help="Read only so many questions, from the start of FILE.", min=1)]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE] [KEY=VALUE]...", help="A file of questions, and overrides as for `mosaic run`."),
]
KindPrices = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=DOLLARS",
        help="Price of a GPU hour, or MODEL=IN/OUT per million tokens on servers; may be repeated.",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder", "--work", help="Folder of the pilot's journal. [default: results/multirun/quote/... or FILE.mosaic]"
    ),
]

app = typer.Typer(name="mosaic", add_completion=False, rich_markup_mode=None)  # plain help: Rich takes 0.2 s to import


def show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"mosaic {mosaic.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
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
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps or runs, searched for runs.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Scheduler, or full policy name as in the table. "
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
    from mosaic.commands.compare import run_compare

    run_compare(folders, baseline=baseline, metric=metric, disturbed=disturbed, out=out)


@app.command()
def quote(
    words: Words = None,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, as 1-8 or 1,2,4.")] = "1-8",
    kind: Annotated[list[str] | None, typer.Option(help="A file of conf/hardware; may be repeated.")] = None,
    price: KindPrices = None,
    prices: Annotated[Path | None, typer.Option(help="JSON with the prices of kinds, each with its date.")] = None,
    deadline: Annotated[str | None, typer.Option(help="Time from now: seconds, or with min, h or d.")] = None,
    pilot: Annotated[
        int | None,
        typer.Option(help="Calls per expert, on average: 128. On servers questions: 20, or a tenth.", min=1),
    ] = None,
    folder: Folder = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the largest cost, and the uncertainty.")] = False,
    models: Models = None,
    server: Servers = None,
    key_env: KeyEnv = None,
    rpm: RequestsPerMin = None,
    tpm: TokensPerMin = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    aggregator: Aggregator = None,
    per_question: PerQuestion = None,
    workers: Workers = None,
    checkpoints: Checkpoints = "checkpoints",
    question_column: QuestionColumn = None,
    answers: Answers = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="The quote as JSON.")] = False,
) -> int:
    """Predict how long a batch takes, and what it costs, on how many GPUs, from a pilot of its own calls.

    Exit status: 0 done, 2 bad input, 5 nothing meets the deadline, 130 stopped.
    """
    from mosaic.commands.quote import run_quote, split_words
    from mosaic.config.batch import BatchRequest
    from mosaic.config.servers import split_prices
    from mosaic.core.checks import require
    from mosaic.core.spending import Cap

    token_prices, machine_prices = split_prices(price or ())
    file, overrides = split_words(words or ())
    require(file is not None or not server, "FILE", "a file of questions beside --server", None)
    request = None
    if file is not None:
        request = BatchRequest(
            path=file,
            models=models,
            servers=tuple(server or ()),
            key_env=key_env,
            token_prices=token_prices,
            cap=Cap(max_requests=max_requests, max_dollars=max_cost),
            max_requests_per_min=rpm,
            max_tokens_per_min=tpm,
            aggregator=aggregator,
            per_question=per_question,
            workers=workers,
            checkpoints=checkpoints,
            question_column=question_column,
            answers=answers,
            limit=limit,
            overrides=overrides,
        )
    return run_quote(
        overrides,
        request,
        gpus=gpus,
        kinds=kind or (),
        price=machine_prices,
        prices=prices,
        deadline=deadline,
        pilot=pilot,
        folder=folder,
        explain=explain,
        as_json=as_json,
    )


@app.command()
def batch(
    file: Annotated[
        Path, typer.Argument(help="Questions: .jsonl (OpenAI's batch format too), .csv, .json, .parquet; or -.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for `mosaic run`: pool=tiny, profile.path=FILE, ...")
    ] = None,
    models: Models = None,
    server: Servers = None,
    key_env: KeyEnv = None,
    rpm: RequestsPerMin = None,
    tpm: TokensPerMin = None,
    aggregator: Aggregator = None,
    per_question: PerQuestion = None,
    workers: Workers = None,
    on: Annotated[
        str | None,
        typer.Option(help="Machines: ray (the cluster of this machine), or ray://HEAD. [default: only this machine]"),
    ] = None,
    checkpoints: Checkpoints = "checkpoints",
    question_column: QuestionColumn = None,
    answers: Answers = None,
    limit: Limit = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]IN/OUT",
            help="Dollars per million tokens read/written; for models loaded here DOLLARS per worker and hour.",
        ),
    ] = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the journal: FILE with the suffix .mosaic.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the output: that of FILE.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port; 0: a free one.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address to serve metrics on; 0.0.0.0: every one of this machine.")
    ] = "127.0.0.1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and stop.")] = False,
) -> int:
    """Answer a file of questions; the same command resumes after any interruption.

    Exit status: 0 complete, 2 bad input, 4 complete with errors, 6 it is running already, 130 stopped.
    """
    from mosaic.commands.batch import keep_standard_input, run_batch
    from mosaic.commands.dry_run import run_dry
    from mosaic.config.batch import BatchRequest
    from mosaic.config.servers import read_hourly_price, split_prices
    from mosaic.core.spending import Cap

    token_prices, machine_prices = split_prices(price or ())
    price_per_hour = read_hourly_price(machine_prices)
    request = BatchRequest(
        path=keep_standard_input(out, work, is_dry=dry_run) if str(file) == "-" else file,
        token_prices=token_prices,
        cap=Cap(max_requests=max_requests, max_dollars=max_cost),
        models=models,
        servers=tuple(server or ()),
        key_env=key_env,
        max_requests_per_min=rpm,
        max_tokens_per_min=tpm,
        aggregator=aggregator,
        per_question=per_question,
        workers=workers,
        on=on,
        checkpoints=checkpoints,
        question_column=question_column,
        answers=answers,
        limit=limit,
        overrides=tuple(overrides or ()),
    )
    if dry_run:
        return run_dry(request)
    return run_batch(request, work, out, price_per_hour, metrics_port, metrics_host)


@app.command()
def audit(
    out: Annotated[Path, typer.Argument(help="Output of mosaic batch: NAME.out.jsonl.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Your own code, as for the batch: aggregator.comparison=..."),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A server of the batch that may have a key; may be repeated."),
    ] = None,
    key_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Variable that holds the key; may be repeated. [default: OPENAI_API_KEY]"),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Continue until at most this share would change: 2%.")] = None,
    sample: Annotated[int, typer.Option(help="Questions of the first round; each round doubles them.", min=1)] = 100,
    most: Annotated[int | None, typer.Option(help="Most questions to audit in all.", min=1)] = None,
    work: Annotated[Path | None, typer.Option(help="The batch's folder: NAME.mosaic.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers only.")] = False,
) -> int:
    """Bound how many skipped questions would have another answer if they had been aggregated: a promise without gold.

    Exit status: 0 done, 2 bad input, 5 --until was not reached, 130 stopped.
    """
    from mosaic.commands.audit import run_audit
    from mosaic.config.received import TrustedServers

    trusted = TrustedServers(tuple(server or ()), tuple(key_env or ()))
    return run_audit(
        out, overrides or (), until=until, sample=sample, most=most, work=work, as_json=as_json, trusted=trusted
    )


@app.command()
def doctor(
    models: Annotated[
        str | None, typer.Option(help="Models to check, as for `mosaic batch`. [default: all checkpoints found]")
    ] = None,
    server: Servers = None,
    key_env: KeyEnv = None,
    checkpoints: Checkpoints = "checkpoints",
    on: Annotated[str | None, typer.Option(help="Check a Ray cluster too: ray, or ray://HEAD.")] = None,
    port: Annotated[int | None, typer.Option(help="Check that this port is free, as for --metrics-port.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> int:
    """Check what runs on this machine need: vLLM, torch, GPUs, checkpoints or servers, disk, ports, Ray.

    Exit status: 0 nothing fails, 2 something does.
    """
    from mosaic.commands.doctor import run_doctor
    from mosaic.config.batch import BatchRequest

    request = BatchRequest(
        path=Path(), models=models, servers=tuple(server or ()), key_env=key_env, checkpoints=checkpoints, on=on
    )
    return run_doctor(request, port=port, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and end with its status; a bad option counts as bad input."""
    words = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    command = get_command(app)
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
