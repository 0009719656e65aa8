"""Compare closed loops measured on a server with the simulator.

    python experiments/check_loops.py POINTS.csv conf/hardware/h100_80gb.yaml --shape qwen3_32b --out results/hardware

Points are rows of isl, osl, concurrency, tp, ttft_ms and tpot_ms, all of one model. Nothing is fitted here.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import typer
import yaml

from experiments.hardware.closed_loop import FULL_FRAC, SERVER, LoopPoint, is_full, kv_tokens_of, read_points, run_loops
from experiments.hardware.dummy_checkpoint import read_shape
from mosaic.config.errors import exit_with_message
from mosaic.core.checks import require
from sim.hardware.hardware import Hardware, hardware_from_config

HEAD = """# Closed loops on {name}: {title}

Each of so many clients sends its next request after an answer. Measured -> simulated, by
`python experiments/check_loops.py {file} conf/hardware/{name}.yaml --shape {title}`.
vLLM's limits for a server: {limits}.

| TP | prompt | answer | clients | TTFT (ms) | | TPOT (ms) | | output tokens per s | |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def main(
    points: Annotated[Path, typer.Argument(help="CSV file of points.")],
    hardware: Annotated[Path, typer.Argument(help="File of conf/hardware, or one like it.")],
    shape: Annotated[str, typer.Option(help="Of experiments/hardware/shapes, or a YAML file.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the page.")] = None,
) -> None:
    """Simulate measured closed loops, and print what was measured beside it."""
    with exit_with_message():
        config = yaml.safe_load(hardware.read_text(encoding="utf-8"))
        require(isinstance(config, dict), f"{hardware}", "a mapping with the keys of a hardware file", config)
        kind = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
        model = read_shape(shape)
        measured = read_points(points)
        degrees = sorted({point.tp_degree for point in measured})
        kv_tokens = {degree: kv_tokens_of(kind, model, degree, SERVER) for degree in degrees}
        page = _page(measured, run_loops(measured, kind, model), kv_tokens, kind, points.name, Path(shape).stem)
        print(page)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{kind.gpu.name}_{Path(shape).stem}.md").write_text(page, encoding="utf-8")


def _page(
    measured: Sequence[LoopPoint],
    simulated: Sequence[LoopPoint],
    kv_tokens: dict[int, int],
    hardware: Hardware,
    file: str,
    title: str,
) -> str:
    limits = f"max_num_seqs {SERVER.max_num_seqs:,}, max_num_batched_tokens {SERVER.max_num_batched_tokens:,}"
    lines = [HEAD.format(name=hardware.gpu.name, title=title, file=file, limits=limits)]
    pairs = list(zip(measured, simulated, strict=True))
    for point, again in pairs:
        numbers = (
            f"{scale * before:,.{digits}f} -> {scale * after:,.{digits}f} | {100 * (after / before - 1):+.1f}%"
            for before, after, scale, digits in (
                (point.ttft_s, again.ttft_s, 1e3, 0),
                (point.tpot_s, again.tpot_s, 1e3, 2),
                (point.tok_per_s, again.tok_per_s, 1, 0),
            )
        )
        mark = "*" if is_full(point, kv_tokens[point.tp_degree]) else ""
        axes = f"| {point.tp_degree} | {point.prompt_tokens:,} | {point.output_tokens:,} | {point.concurrency}{mark} | "
        lines.append(axes + " | ".join(numbers) + " |\n")
    held = ", ".join(f"{tokens:,} at TP {degree}" for degree, tokens in kv_tokens.items())
    lines.append(
        f"\n\\* beyond saturation: more than {FULL_FRAC:.0%} of the KV tokens that the simulator sees ({held}).\n\n"
    )
    below = [pair for pair in pairs if not is_full(pair[0], kv_tokens[pair[0].tp_degree])]
    top: dict[tuple[int, int, int], tuple[LoopPoint, LoopPoint]] = {}
    for pair in sorted(pairs, key=lambda pair: pair[0].concurrency):
        top[pair[0].tp_degree, pair[0].prompt_tokens, pair[0].output_tokens] = pair
    for name, chosen, value in (
        ("TPOT, below saturation", below, lambda point: point.tpot_s),
        ("TTFT, below saturation", below, lambda point: point.ttft_s),
        ("output tokens per s with the most clients, of each TP, prompt and answer", list(top.values()), _rate),
    ):
        lines.append(_summary(name, chosen, value))
    return "".join(lines)


def _rate(point: LoopPoint) -> float:
    return point.tok_per_s


def _summary(name: str, pairs: Sequence[tuple[LoopPoint, LoopPoint]], value: Callable[[LoopPoint], float]) -> str:
    errors = [value(again) / value(point) - 1 for point, again in pairs]
    if not errors:
        return f"- {name}: no point\n"
    absolute, mean, most = fmean(map(abs, errors)), fmean(errors), max(errors, key=abs)
    return (
        f"- {name}: {len(errors)} points, mean of absolute errors {absolute:.1%}, mean {mean:+.1%}, most {most:+.1%}\n"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
