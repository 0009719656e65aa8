"""Replay recorded logs on the simulated engine, and show which of its steps differ from the recorded ones.

    python experiments/replay_logs.py DIR --out results/replay

Each folder of DIR with requests.jsonl and meta.json is a log. Its name is HARDWARE_SHAPE, with names of conf/hardware
and of experiments/hardware/shapes. meta.json gives the limits of its engine, which was vLLM's V1. Nothing is fitted.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import msgspec
import typer
import yaml

from experiments.hardware.closed_loop import kv_tokens_of
from experiments.hardware.dummy_checkpoint import read_shape
from experiments.hardware.recorded_log import LoggedStep, logged_steps
from mosaic.config.errors import exit_with_message
from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, ModelShape
from mosaic.figures.replay import replay_errors
from mosaic.workloads.request_log import load_request_log, measured_records
from sim.engine.engine import Engine
from sim.engine.request import Request
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import Chunks, IterationTime, iteration_time

CONF = Path(__file__).resolve().parents[1] / "conf" / "hardware"
METRICS = ("mean_latency_s", "mean_tpot_s", "mean_ttft_s", "makespan_s")
GROUPS: tuple[tuple[str, Callable[[LoggedStep], bool]], ...] = (
    ("decodes alone, up to 24", lambda step: not step.prompt_tokens and step.num_decodes <= 24),
    ("decodes alone, 25 to 64", lambda step: not step.prompt_tokens and 24 < step.num_decodes <= 64),
    ("decodes alone, more", lambda step: not step.prompt_tokens and step.num_decodes > 64),
    ("with up to 512 prompt tokens", lambda step: 0 < step.prompt_tokens <= 512),
    ("with 513 to 1,024", lambda step: 512 < step.prompt_tokens <= 1024),
    ("with more", lambda step: step.prompt_tokens > 1024),
)
HEAD = """# Recorded logs, replayed

Logs of vLLM 0.19 (LLMServingSim, MIT licence) on the simulated engine, by
`python experiments/replay_logs.py DIR --out results/replay`. Tables of the GPUs' operators are all that goes in.

## Errors

| log | replayed | latency | time per token | to the first token | makespan | cached | preemptions |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""
CORRECTED = """
*Steps as recorded*: the mean differences of the table below are added, of steps with and without prompts. This row is
fitted to the log. It says whether these steps are all that is missing.

## Steps

Steps of a log whose batch is known. `measured - simulated` is of one step, the mean.

| log | steps | number | measured (ms) | measured - simulated (ms) | |
| --- | --- | ---: | ---: | ---: | ---: |
"""


class Log(NamedTuple):
    """A recorded run, and the engine that served it."""

    name: str
    path: Path
    hardware: Hardware
    shape: ModelShape
    tp_degree: int
    options: EngineOptions

    @property
    def time(self) -> IterationTime:
        """Of its engine."""
        return iteration_time(self.hardware, self.shape, self.tp_degree)


class Replay(NamedTuple):
    """A log as the simulator served it."""

    records: list[CallRecord]
    errors: tuple[float, ...]
    """Of ``METRICS``, signed."""

    @property
    def cached_frac(self) -> float:
        """Share of the prompts' tokens that was in the cache."""
        return sum(one.cached_tokens for one in self.records) / sum(one.prompt_tokens for one in self.records)


@dataclass
class Corrected(IterationTime):
    """A time with the mean differences of recorded steps added."""

    own: IterationTime
    decode_s: float
    prefill_s: float
    needs_longest = True

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        return self.own.decode_span_s(num_seqs, kv_tokens, num_steps, longest) + num_steps * self.decode_s

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        return self.own.mixed_s(chunks, num_decodes, decode_kv_tokens, longest) + self.prefill_s


def main(
    logs: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the folders of logs.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the page.")] = None,
) -> None:
    """Replay logs and print their errors."""
    with exit_with_message():
        found = [read_log(path.parent) for path in sorted(logs.glob("*/requests.jsonl"))]
        require(len(found) > 0, f"{logs}", "a folder with a folder of requests.jsonl and meta.json at least", 0)
        page = page_of(found)
        print(page)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "replay.md").write_text(page, encoding="utf-8")


def read_log(folder: Path) -> Log:
    """Read what served a log.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the key and the rule.
    """
    known = sorted(path.stem for path in CONF.glob("*.yaml"))
    kind = next((kind for kind in known if folder.name.startswith(f"{kind}_")), "")
    require(kind != "", f"{folder}: hardware in its name", f"one of {known}", folder.name)
    config = yaml.safe_load((CONF / f"{kind}.yaml").read_text(encoding="utf-8"))
    hardware = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    meta = folder / "meta.json"
    require(meta.is_file(), f"{meta}", "a file", "none")
    given: dict[str, Any] = msgspec.json.decode(meta.read_bytes(), type=dict[str, Any])
    engine = given.get("engine_kwargs", {})
    needed = ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size")
    require(all(key in engine for key in needed), f"{meta}: engine_kwargs", f"with {', '.join(needed)}", sorted(engine))
    options = EngineOptions(
        order=Order.MIXED,
        max_num_seqs=engine["max_num_seqs"],
        max_num_batched_tokens=engine["max_num_batched_tokens"],
        kv_cache_tokens=given.get("kv_cache", {}).get("num_kv_tokens"),
    )
    path = folder / "requests.jsonl"
    shape = read_shape(folder.name.removeprefix(f"{kind}_"))
    return Log(folder.name, path, hardware, shape, engine["tensor_parallel_size"], options)


def replay(log: Log, time: IterationTime, *, with_prefixes: bool = True) -> Replay:
    """Serve the requests of a log."""
    workload, measured = load_request_log(log.path, expert="model"), measured_records(log.path, expert="model")
    require(len(measured) > 0, f"{log.path}", "a log with measured times", "arrivals and lengths alone")
    calls = workload.calls if with_prefixes else [msgspec.structs.replace(call, prefix=None) for call in workload.calls]
    served = _serve(calls, workload.output_tokens or {}, log, time)
    records = [_record(*both) for both in zip(measured, served, strict=True)]
    errors = replay_errors(records, measured)
    return Replay(records, tuple(errors[name].error_frac for name in METRICS))


def _serve(calls: Sequence[Call], output_tokens: Mapping[CallKey, int], log: Log, time: IterationTime) -> list[Request]:
    engine = Engine(
        iteration_time=time,
        settings=log.options,
        kv_tokens=kv_tokens_of(log.hardware, log.shape, log.tp_degree, log.options),
        context_tokens=max(call.prompt_tokens + output_tokens[call.key] for call in calls),
    )
    served = [
        engine.submit(number, call.prompt_tokens, output_tokens[call.key], call.ready_s, prefix=call.prefix)
        for number, call in enumerate(calls)
    ]
    engine.advance_to(inf)
    return served


def _record(measured: CallRecord, served: Request) -> CallRecord:
    return msgspec.structs.replace(
        measured,
        admitted_ts=served.admitted_ts,
        first_token_ts=served.first_token_ts,
        finished_ts=served.finished_ts,
        cached_tokens=served.cached_tokens,
        num_preemptions=served.num_preemptions,
    )


def page_of(logs: Sequence[Log]) -> str:
    """Write the errors of logs, and of their steps."""
    errors, steps = [], []
    for log in logs:
        own = replay(log, log.time)
        cached = {record.key: record.cached_tokens for record in own.records}
        budget = log.options.batched_tokens(0)
        found = logged_steps(measured_records(log.path, expert="model"), cached, log.time, budget)
        equal = log._replace(hardware=replace(log.hardware, attention_streams=0.0)).time
        corrected = Corrected(log.time, _difference_s(found, False), _difference_s(found, True))
        variants = {
            "as simulated": own,
            "prefixes ignored": replay(log, log.time, with_prefixes=False),
            "lengths taken for equal": replay(log, equal),
            "steps as recorded": replay(log, corrected),
        }
        errors += [_error_row(log.name, name, one) for name, one in variants.items()]
        for name, is_in in GROUPS:
            if those := [step for step in found if is_in(step)]:
                steps.append(_step_row(log.name, name, those))
    return HEAD + "\n".join(errors) + "\n" + CORRECTED + "\n".join(steps) + "\n"


def _difference_s(steps: Sequence[LoggedStep], has_prompts: bool) -> float:
    """Average what steps took beyond the prediction; 0 without steps."""
    those = [step for step in steps if bool(step.prompt_tokens) == has_prompts]
    number = sum(step.num_steps for step in those)
    return sum(step.num_steps * (step.measured_s - step.predicted_s) for step in those) / max(1, number)


def _error_row(log: str, name: str, one: Replay) -> str:
    cells = [f"{100 * error:+.1f}%" for error in one.errors]
    preemptions = sum(record.num_preemptions for record in one.records)
    return f"| {log} | {name} | {' | '.join(cells)} | {100 * one.cached_frac:.1f}% | {preemptions} |"


def _step_row(log: str, name: str, steps: Sequence[LoggedStep]) -> str:
    number = sum(step.num_steps for step in steps)
    measured_s = sum(step.num_steps * step.measured_s for step in steps) / number
    predicted_s = sum(step.num_steps * step.predicted_s for step in steps) / number
    differs = f"{1e3 * (measured_s - predicted_s):+.2f} | {100 * (measured_s / predicted_s - 1):+.1f}%"
    return f"| {log} | {name} | {number} | {1e3 * measured_s:.1f} | {differs} |"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
