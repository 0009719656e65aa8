"""Quote a batch: how long, how much, on how many GPUs.

    mosaic quote questions.jsonl --models A,B,C --deadline 2h --price a100_80gb=1.89
    python experiments/quote.py workload=mmlu_pro
    python experiments/quote.py --deadline 40min --price a100_80gb=1.89 --explain workload=mmlu_pro aggregator=auto
    python experiments/quote.py --gpus 1-4 --kind a100_80gb --kind rtx4090 --prices PRICES.json --json workload=gpqa

Takes the overrides of run.py, or a file of questions with the options of `mosaic batch`, which then goes on from the
pilot's answers. A pilot asks some of the batch's own calls where the batch would run (backend=vllm or the
simulation), and keeps their answers in the folder's journal: the same command goes on there and asks nothing twice.
The pilot's lengths then go through the simulator, for each number of GPUs of each kind.
Exit status 5: nothing meets the deadline.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.config.asked import QUOTE, check_not_begun, keep_plans
from experiments.config.batch import BatchRequest, batch_config, work_folder
from experiments.config.compose import as_recorded, compose_config
from experiments.config.errors import NOT_REACHED_STATUS, exit_with_message
from experiments.config.job import job_from
from experiments.config.machines import machines
from experiments.config.places import JOURNAL, own_folder
from experiments.config.run_start import begin
from mosaic.core.checks import require
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.file_names import file_name
from mosaic.quote import Asked, Kind, Quotation, ask, describe, quote
from mosaic.quote.forecast import Factors, Simulator
from mosaic.quote.measured import hardware_error, load_factor, serve_factor
from mosaic.quote.prices import Price, load_prices, parse_duration_s, parse_price
from mosaic.report.display import show_run
from mosaic.runtime.job import Job
from sim.cluster.session_times import SimulatedSessions

MAX_GPUS = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Quote what the command line asks for; return the exit status."""
    options, words = _parser().parse_known_args(arguments)
    files = [word for word in words if "=" not in word and not word.startswith("-")]
    require(len(files) < 2, "FILE", "one file of questions", files)
    overrides = [word for word in words if word not in files]
    for override in overrides:
        require("=" in override and not override.startswith("--"), "argument", "an option or an override", override)
    prices = prices_from(options.prices, options.price)
    deadline_s = None if options.deadline is None else parse_duration_s(options.deadline)
    made = quote_batch(
        overrides,
        sizes=parse_sizes(options.gpus),
        kinds=options.kind,
        prices=prices,
        deadline_s=deadline_s,
        per_expert=options.pilot,
        folder=options.folder,
        request=_request(options, files[0], overrides) if files else None,
    )
    print(json.dumps(made.to_json(), indent=1) if options.json else describe(made, explain=options.explain), end="")
    return NOT_REACHED_STATUS if made.cheapest is None else 0


def quote_batch(
    overrides: Sequence[str],
    *,
    sizes: Sequence[int] = tuple(range(1, 9)),
    kinds: Sequence[str] = (),
    prices: Mapping[str, Price] | None = None,
    deadline_s: float | None = None,
    per_expert: int = 128,
    folder: Path | None = None,
    request: BatchRequest | None = None,
) -> Quotation:
    """Run a batch's pilot, or go on with it, and quote the rest.

    Parameters
    ----------
    overrides
        Of run.py: the batch, and where its pilot runs.
    sizes, kinds
        Numbers of GPUs, and their kinds (files of conf/hardware); none: the kind of the run.
    prices, deadline_s
        See ``mosaic.quote.quote``.
    per_expert
        Calls of the pilot an expert, on average.
    folder
        Of the journal; None: one below results/multirun/quote, named by the workload and the backend; of a file the
        folder that its batch has too.
    request
        A file of questions, where the batch is not named by overrides alone.

    Raises
    ------
    ValueError, TypeError, MosaicError
        If something is wrong with the input, or the pilot cannot run.
    """
    config = compose_config([*overrides]) if request is None else batch_config(request)
    backend = config["backend"]["name"]
    rule = "sim or vllm in a quote, which is of GPUs that it could take: on servers nothing is measured"
    require(backend in ("sim", "vllm"), "backend.name", rule, backend)
    place, work = folder or own_folder("quote") / file_name(f"{config['workload']['name']}_{backend}"), None
    if request is not None:
        work = folder or work_folder(request.path)
        check_not_begun(work)
        place = work / QUOTE
    prepared = job_from(config, (work or place) / JOURNAL, overrides)
    job, is_real = prepared.job, prepared.job.site.way != "simulated"
    tell = (lambda line: print(line, file=sys.stderr, flush=True)) if is_real else (lambda line: None)
    with job.site.open():
        if work is not None:
            check_not_begun(work)
        if is_real:
            begin(place, as_recorded(config) | {"quote": {"calls_per_expert": per_expert}}, (work or place) / JOURNAL)
        show = lambda title, predicted: show_run(title, predicted=predicted, is_simulated=not is_real)  # noqa: E731
        asked = ask(
            job, per_expert, show=show, tell=tell, keep=lambda plans: keep_plans(place, plans) if work else None
        )
    named: list[str | None] = [*dict.fromkeys(kinds)] or [None]
    return quote(
        job,
        asked,
        [kind_of(job, asked, config, overrides, name, max(sizes), is_real=is_real) for name in named],
        sizes,
        prices=prices,
        deadline_s=deadline_s,
    )


def kind_of(
    job: Job,
    asked: Asked,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    name: str | None,
    max_gpus: int,
    *,
    is_real: bool,
) -> Kind:
    """Prepare a kind of GPU; the pilot's own kind runs as fast as the pilot did."""
    own = job.cluster.workers[0].gpu.name
    if name is not None:
        kept = [override for override in overrides if override.startswith(("hardware.", "cluster"))]
        config = compose_config([*kept, f"hardware={name}"])
    hardware = machines(config)[1][0]
    gpu = hardware.gpu
    experts = {expert.name: expert for expert in (*job.graph.experts, *job.experts)}
    degrees = [expert.tp_degree for expert in experts.values()]
    cluster = uniform_cluster(name="quote", num_workers=max(max_gpus, *degrees), gpu=gpu)
    sessions = SimulatedSessions({gpu.name: hardware}, cluster, EngineOptions())
    factors = Factors()
    if is_real and gpu.name == own:
        plain = Simulator(experts=experts, sessions=sessions, loads=sessions)
        factors = Factors(load=load_factor(asked.pilot, plain), serve=serve_factor(asked.pilot, plain, cluster))
    error, source = hardware_error(gpu.name, is_simulated=not is_real, is_measured=is_real and gpu.name == own)
    simulator = Simulator(experts=experts, sessions=sessions, loads=sessions, factors=factors)
    return Kind(gpu=gpu, simulator=simulator, hardware_error=error, hardware_source=source)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read numbers of GPUs.

    Raises
    ------
    ValueError
        If they are not some.

    Examples
    --------
    >>> parse_sizes("1-3,8")
    (1, 2, 3, 8)
    """
    sizes: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        is_number = low.strip().isdigit() and (not dash or high.strip().isdigit())
        bounds = (int(low), int(high) if dash else int(low)) if is_number else (0, 0)
        rule = f"numbers or ranges from 1 to {MAX_GPUS}, as 1-8 or 1,2,4"
        require(1 <= bounds[0] <= bounds[1] <= MAX_GPUS, "gpus", rule, text)
        sizes += range(bounds[0], bounds[1] + 1)
    return tuple(dict.fromkeys(sizes))


def _request(options: argparse.Namespace, file: str, overrides: Sequence[str]) -> BatchRequest:
    return BatchRequest(
        path=Path(file),
        models=options.models,
        aggregator=options.aggregator,
        per_question=options.per_question,
        workers=options.workers,
        checkpoints=options.checkpoints,
        overrides=tuple(overrides),
    )


def prices_from(path: Path | None, said: Sequence[str]) -> dict[str, Price]:
    """Put prices together: those of the command line go before those of the file."""
    prices = {} if path is None else load_prices(path)
    return prices | dict(map(parse_price, said))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quote", description="Quote a batch: how long, how much, on how many GPUs.", allow_abbrev=False
    )
    parser.add_argument("--gpus", default="1-8", help="numbers of GPUs, as 1-8 or 1,2,4 (default: %(default)s)")
    parser.add_argument("--kind", action="append", default=[], help="a file of conf/hardware; may be repeated")
    parser.add_argument("--price", action="append", default=[], metavar="KIND=DOLLARS", help="an hour of one GPU")
    parser.add_argument("--prices", type=Path, help="JSON with the prices of kinds, each with its date")
    parser.add_argument("--deadline", help="from now: seconds, or with min, h or d")
    parser.add_argument("--pilot", type=int, default=128, help="calls an expert, on average (default: %(default)s)")
    parser.add_argument(
        "--folder",
        "--work",
        type=Path,
        help="of the pilot's journal (default: results/multirun/quote/... or FILE.mosaic)",
    )
    parser.add_argument("--explain", action="store_true", help="say what dominates, and what is unknown")
    of_file = parser.add_argument_group("of a file of questions, as for mosaic batch")
    of_file.add_argument("--models", help="checkpoints A,B,C, or a LiteLLM file")
    of_file.add_argument("--aggregator", help="who merges, or none (default: the largest)")
    of_file.add_argument("--per-question", type=int, help="models that answer each question (default: 3)")
    of_file.add_argument("--workers", type=int, help="workers of the pilot (default: all GPUs, or 2)")
    of_file.add_argument("--checkpoints", default="checkpoints", help="where they lie (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the quote as JSON")
    return parser


if __name__ == "__main__":
    with exit_with_message():
        status = main()
    sys.exit(status)
