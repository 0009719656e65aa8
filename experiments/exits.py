"""Say what early exits are worth: on answers that the tiny pool really gave, and in simulated worlds.

    python experiments/exits.py worlds
    python experiments/exits.py tiny --run FOLDER --embedder checkpoints/tiny/TinySage --online NAME=FOLDER ...

FOLDER is a run of the tiny pool on real vLLM in which everybody answered, with backend.confidence=true. Each writes a
text, numbers and a figure. results/README.md has the commands of the committed ones.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.figures.exits import Bar, Point, draw_exits  # noqa: E402
from experiments.studies.exit_report import (  # noqa: E402
    WorldRule,
    online_rows,
    probe,
    promises,
    replayed_rows,
    world_rows,
)
from experiments.studies.gate_trials import broken_limit  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402

COMMAND = "python experiments/exits.py"
LINE_CHARS = 118


def triple(values: Sequence[float], scale: float = 100) -> tuple[float, float, float]:
    """Give a value and its interval in percent."""
    value, low, high = (scale * one for one in values[:3])
    return value, low, high


def told(values: Sequence[float], scale: float = 100, form: str = "{:.1f}") -> str:
    """Write a value with its interval."""
    value, low, high = (form.format(scale * one) for one in values[:3])
    return f"{value} ({low} to {high})"


def tiny_lines(found: Mapping[str, Any]) -> list[str]:
    """Say what came of the tiny pool's answers."""
    head = (
        f"The tiny pool on real vLLM (CPU), {found['num_questions']} questions of three agents, all of whom answered. "
        "In brackets 95% bootstrap intervals over questions. An exit after two agents is right where their vote is "
        "(the first one's answer where they differ): the AUC is the chance that a right exit scores above a wrong one. "
        f"Confidence C: token probabilities. FrobCosSim: token embeddings of {found['embedder']}."
    )
    lines = ["== What tells a right exit from a wrong one", *wrap(head, LINE_CHARS)]
    lines += [f"  {name:<32} AUC {told(values, 1, '{:.2f}')}" for name, values in found["aucs"].items()]
    lines += ["", "== Rules replayed on these answers: agents in the order of their slots, those heard vote"]
    lines += ["  rule                              agents saved (%)      accuracy of the vote (%)  change (pp)"]
    lines += [
        f"  {name:<32}  {told(row['saved']):<20}  {told(row['accuracy']):<24}  {told(row['change'])}"
        for name, row in found["replayed"].items()
    ]
    lines += ["", "== Real runs, one per rule, with the aggregator; agents in the order of their slots"]
    told_by = (
        "Controllers: the wall time in which the driver made up its mind, the pipeline's share included, of the run."
    )
    lines += wrap(told_by, LINE_CHARS)
    lines += [
        "  rule             calls finished  cancelled  last agent left out  reacting  accuracy (%)          change (pp)"
    ]
    lines += [
        f"  {name:<15}  {row['num_finished']:14,}  {row['num_cancelled']:9,}  {row['skip_frac']:19.1%}  "
        f"{row['reacting_frac']:8.2%}  "
        f"{told(row['accuracy']):<20}  {told(row['change'])}"
        for name, row in found["online"].items()
    ]
    return lines


def world_lines(rows: Sequence[WorldRule], num_seeds: int, num_questions: int) -> list[str]:
    """Say what came of the simulated worlds."""
    head = (
        f"Simulated worlds, {num_seeds} seeds of {num_questions} questions, paired with exit=never; in brackets 95% "
        "intervals over seeds. Calls spared are the most that a rule can spare: agents of a node answer one after the "
        "other. Sim is 1 for the same answer and 0 for another; an agent's confidence is the probability with which "
        "its world's model gives its answer (ASSUMED). Adversarial: agents agree by attraction alone, and skipping "
        "what is unanimous loses just more than the 1 pp that the calibrated exit may lose."
    )
    lines = ["", "== Rules in simulated worlds", *wrap(head, LINE_CHARS)]
    lines += [
        "  world        topology  rule                              calls spared (%)      change of accuracy (pp)"
    ]
    lines += [
        f"  {row.world:<11}  {row.topology:<8}  {row.rule:<32}  {told(row.saved):<20}  {told(row.change)}"
        for row in rows
    ]
    return lines


def promise_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say whether promises were kept."""
    num, limit = rows[0]["num_calibrations"], broken_limit(rows[0]["num_calibrations"])
    misses = sum(row["num_broken"] > limit for row in rows)
    verdict = f"MISS: {misses} lines are above" if misses else "all within"
    head = (
        f"exit=calibrated, {num:,} calibrations a line, drawn with replacement from simulated questions whose losses "
        "are known. A promise is broken where the chosen threshold loses more than is accepted: at 95% confidence at "
        f"most {limit} times (the 99% limit of the binomial). {len(rows)} lines, {verdict} the limit of {limit}."
    )
    lines = ["", "== Promises of the calibrated exit", *wrap(head, LINE_CHARS)]
    lines += ["  world        topology  accepted  questions  broken  questions left to the first layer (%)"]
    lines += [
        f"  {row['world']:<11}  {row['topology']:<8}  {100 * row['accepted_loss_frac']:5.1f} pp  "
        f"{row['num_questions']:9,}  {row['num_broken']:6,}  {100 * row['skip_frac']:.1f}"
        + ("" if row["num_broken"] <= limit else "  MISS")
        for row in rows
    ]
    return lines


def write(folder: Path, name: str, lines: Sequence[str], data: Mapping[str, Any], figure: bytes) -> None:
    """Write a report, its numbers and its figure."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    (folder / f"{name}.txt").write_text(text, encoding="ascii")
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="ascii")
    (folder / f"{name}.png").write_bytes(figure)
    print(text)
    print(f"written: {folder / name}.txt, {name}.json, {name}.png")


def report_tiny(options: argparse.Namespace) -> None:
    """Report on the tiny pool."""
    heard, aucs, embed = probe(options.run, options.embedder)
    online = {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in options.online)}
    tiny = {
        "command": f"{COMMAND} tiny",
        "num_questions": len(heard),
        "embedder": options.embedder.name,
        "aucs": aucs,
        "replayed": replayed_rows(heard, embed),
        "online": online_rows(options.run, online),
    }
    points = [Point(name, triple(row["saved"]), triple(row["change"])) for name, row in tiny["replayed"].items()]
    figure = draw_exits([Bar(name, *values) for name, values in aucs.items()], {"rules, replayed": points})
    write(options.out, "tiny", [f"{COMMAND} tiny", "", *tiny_lines(tiny)], tiny, figure)


def report_worlds(options: argparse.Namespace) -> None:
    """Report on simulated worlds."""
    kept, populations = promises(options.seeds, options.drawn, options.calibrations)
    rows = world_rows(populations, options.seeds, options.questions)
    panels = {
        f"{world}, {topology}": [
            Point(row.rule, triple(row.saved), triple(row.change))
            for row in rows
            if (row.world, row.topology) == (world, topology)
        ]
        for topology in ("flat", "tree")
        for world in ("mmlu_pro", "adversarial")
    }
    lines = [f"{COMMAND} worlds", *promise_lines(kept), *world_lines(rows, options.seeds, options.questions)]
    data = {"command": f"{COMMAND} worlds", "promises": kept, "rules": [row._asdict() for row in rows]}
    write(options.out, "worlds", lines, data, draw_exits([], panels))


def main() -> int:
    parser = argparse.ArgumentParser(prog="exits", description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True, metavar="tiny|worlds")
    tiny = parts.add_parser("tiny", help="answers that the tiny pool really gave")
    tiny.add_argument("--run", type=Path, required=True, help="a real run in which everybody answered")
    tiny.add_argument("--embedder", type=Path, required=True, help="checkpoint whose token embeddings are compared")
    tiny.add_argument("--online", nargs="*", default=[], help="NAME=FOLDER of real runs with an exit")
    tiny.set_defaults(report=report_tiny)
    worlds = parts.add_parser("worlds", help="simulated worlds, and whether promises are kept")
    worlds.add_argument("--seeds", type=int, default=8, help="of each world")
    worlds.add_argument("--questions", type=int, default=250, help="of each seed, to compare rules")
    worlds.add_argument("--drawn", type=int, default=400, help="of each seed, to draw calibrations from")
    worlds.add_argument("--calibrations", type=int, default=2_000, help="of each line")
    worlds.set_defaults(report=report_worlds)
    for part in (tiny, worlds):
        part.add_argument("--out", type=Path, default=own_folder("exits"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.report(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
