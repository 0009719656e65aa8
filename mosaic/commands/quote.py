"""Quote a batch: how long, how much, on how many GPUs.

    mosaic quote questions.jsonl --models A,B,C --deadline 2h --price a100_80gb=1.89
    mosaic quote questions.jsonl --server URL --models a,b --price a=0.4/1.6 --price b=0.1/0.4
    mosaic quote workload=mmlu_pro
    mosaic quote --deadline 40min --price a100_80gb=1.89 --explain workload=mmlu_pro aggregator=auto
    mosaic quote --gpus 1-4 --kind a100_80gb --kind rtx4090 --prices PRICES.json --json workload=gpqa

Takes the overrides of run.py, or a file of questions with the options of `mosaic batch`, which then goes on from the
pilot's answers. A pilot runs some of the batch's own calls where the batch would run (backend=vllm or the simulation).
It keeps their answers in the folder's journal: the same command continues there, and repeats no finished call. The
pilot's lengths then go through the simulator, for each number of GPUs of each kind. On servers the first questions are
answered, and their tokens priced for all. Exit status 5: nothing meets the deadline.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.commands.token_quote import quote_on_servers
from mosaic.config.batch import BatchRequest, batch_config, is_on_servers, work_folder
from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.errors import NOT_REACHED_STATUS, log
from mosaic.config.job import build_job
from mosaic.config.machines import machines
from mosaic.config.run_start import QUOTE, begin, check_not_begun, check_start, log_notes
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, uniform_cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.safe_text import file_name
from mosaic.quote import Kind, Quotation, describe, run_quote_pilot
from mosaic.quote import quote as make_quotation
from mosaic.quote.forecast import Simulator, hardware_error, load_factor, serve_factor
from mosaic.quote.prices import Price, load_prices, parse_duration_s, parse_price
from mosaic.quote.tokens import describe_tokens
from mosaic.report.display import show_stage
from mosaic.report.run_folder import JOURNAL, own_folder
from mosaic.runtime.job import Job
from mosaic.runtime.stages import Pilot
from sim.cluster.session_times import SimulatedSessions
from sim.hardware.hardware import Hardware

MAX_GPUS = 64
DEFAULT_CALLS = 128
"""Calls of a pilot per expert, on average."""


def run_quote(
    overrides: Sequence[str],
    request: BatchRequest | None,
    *,
    gpus: str,
    kinds: Sequence[str],
    price: Sequence[str],
    prices: Path | None,
    deadline: str | None,
    pilot: int | None,
    folder: Path | None,
    explain: bool,
    as_json: bool,
) -> int:
    """Run `mosaic quote`, and print the table; returns the exit status."""
    if request is not None and is_on_servers(request):
        for option, value in (("--kind", kinds), ("--prices", prices), ("--deadline", deadline), ("--price", price)):
            require(not value, option, "left out on servers, which bill tokens: --price MODEL=IN/OUT", value)
        bill = quote_on_servers(batch_config(request), request, pilot, folder)
        print(json.dumps(bill.to_json(), indent=1) if as_json else describe_tokens(bill), end="")
        return 0
    made = quote_batch(
        overrides,
        sizes=parse_sizes(gpus),
        kinds=kinds,
        prices=({} if prices is None else load_prices(prices)) | dict(map(parse_price, price)),
        deadline_s=None if deadline is None else parse_duration_s(deadline),
        per_expert=DEFAULT_CALLS if pilot is None else pilot,
        folder=folder,
        request=request,
    )
    print(json.dumps(made.to_json(), indent=1) if as_json else describe(made, explain=explain), end="")
    return NOT_REACHED_STATUS if made.cheapest is None else 0


def quote_batch(
    overrides: Sequence[str],
    *,
    sizes: Sequence[int] = tuple(range(1, 9)),
    kinds: Sequence[str] = (),
    prices: Mapping[str, Price] | None = None,
    deadline_s: float | None = None,
    per_expert: int = DEFAULT_CALLS,
    folder: Path | None = None,
    request: BatchRequest | None = None,
) -> Quotation:
    """Run or resume a batch's pilot, and quote the rest; see `quote` for the arguments.

    Raises
    ------
    ValueError, TypeError, MosaicError
        If something is wrong with the input, or the pilot cannot run.
    """
    config = compose_config([*overrides]) if request is None else batch_config(request)
    backend = config["backend"]["name"]
    rule = "sim or vllm in a quote of GPUs; a batch on servers is quoted by mosaic quote FILE --server URL"
    require(backend in ("sim", "vllm"), "backend.name", rule, backend)
    place, work = folder or own_folder("quote") / file_name(f"{config['workload']['name']}_{backend}"), None
    if request is not None:
        work = folder or work_folder(request.path)
        check_not_begun(work)
        place = work / QUOTE
    prepared = build_job(config, (work or place) / JOURNAL, overrides)
    job, is_real = prepared.job, prepared.job.site.kind != "simulated"
    check_start(job, [place])
    with job.site.open():
        if work is not None:
            check_not_begun(work)
        log_notes(job.workload)
        if is_real:
            said = {"calls_per_expert": per_expert, "num_workers": job.cluster.num_workers}
            may_differ = (f"{QUOTE}.num_workers",)  # of a Ray cluster, as many as there are
            begin(place, as_recorded(config) | {QUOTE: said}, (work or place) / JOURNAL, may_differ=may_differ)
        emit = log if is_real else lambda line: None
        pilot, batch = run_quote_pilot(job, per_expert, show=partial(show_stage, is_simulated=not is_real), log=emit)
    named: list[str | None] = [*dict.fromkeys(kinds)] or [None]
    return make_quotation(
        job,
        batch,
        [kind_of(job, pilot, config, overrides, name, max(sizes), is_real=is_real) for name in named],
        sizes,
        prices=prices,
        deadline_s=deadline_s,
    )


def kind_of(
    job: Job,
    pilot: Pilot,
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
    hardware = machines(config["cluster"], config["hardware"]).kinds[0]
    gpu = hardware.gpu
    degrees = [expert.tp_degree for expert in (*job.graph.experts, *job.experts)]
    cluster = uniform_cluster(name="quote", num_workers=max(max_gpus, *degrees), gpu=gpu)
    simulator = simulator_on(job, hardware, cluster, EngineOptions())
    if is_real and gpu.name == own:
        simulator = replace(
            simulator,
            load_factor=load_factor(pilot, simulator),
            serve_factor=serve_factor(pilot, simulator),
        )
    error, source = hardware_error(gpu.name, is_simulated=not is_real, is_measured=is_real and gpu.name == own)
    return Kind(gpu=gpu, simulator=simulator, hardware_error=error, hardware_source=source)


def simulator_on(job: Job, hardware: Hardware, cluster: Cluster, options: EngineOptions) -> Simulator:
    """Make the simulator of a job's experts on a cluster of one kind of GPU."""
    sessions = SimulatedSessions({hardware.gpu.name: hardware}, cluster, options)
    return Simulator(
        experts={expert.name: expert for expert in (*job.graph.experts, *job.experts)},
        sessions=sessions,
        workers=cluster.workers,
        loads=sessions.load_s,
        unloads=sessions.unload_s,
    )


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


def split_words(words: Sequence[str]) -> tuple[Path | None, tuple[str, ...]]:
    """Separate the file of questions from the overrides.

    Raises
    ------
    ValueError
        If there are several files.
    """
    files = [word for word in words if "=" not in word]
    require(len(files) < 2, "FILE", "one file of questions", files)
    return Path(files[0]) if files else None, tuple(word for word in words if word not in files)
