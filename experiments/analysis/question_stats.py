"""Prints the statistics of a question file that a workload's configuration commits in place of the data.

    python experiments/analysis/question_stats.py MMLU_Pro_test.json

Tokens are counted as characters / 4, rounded up. Paste the output into conf/workload/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosaic.workloads.loaders import file_tokens
from mosaic.workloads.slot_table import draw_question_tokens

NUM_POINTS = 101


def yaml_snippet(source: str, tokens: Sequence[int]) -> str:
    """Format the quantile grid with its source and its error against the questions themselves."""
    quantiles = [round(float(value), 1) for value in np.quantile(tokens, np.linspace(0.0, 1.0, NUM_POINTS))]
    drawn = draw_question_tokens(quantiles, len(tokens), np.random.default_rng(0))
    mean, drawn_mean = float(np.mean(tokens)), float(np.mean(drawn))
    lines = [
        f"# Tokens (characters / 4) of the {len(tokens)} questions of {source}, from 0% to 100% in steps of 1%.",
        f"# Mean {mean:.2f}; drawn back from this grid {drawn_mean:.2f} ({drawn_mean / mean - 1:+.1%}).",
        f"# Refit: python experiments/analysis/question_stats.py {source}",
        "prompt_token_quantiles:",
        *(f"  {line}" for line in _wrapped(quantiles)),
    ]
    return "\n".join(lines)


def _wrapped(values: Sequence[float], *, per_line: int = 20) -> list[str]:
    chunks = [values[start : start + per_line] for start in range(0, len(values), per_line)]
    lines = [", ".join(f"{value:g}" for value in chunk) for chunk in chunks]
    return ["[" + lines[0] + ",", *(f" {line}," for line in lines[1:-1]), f" {lines[-1]}]"]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="questions: .json, .csv or .jsonl")
    path: Path = parser.parse_args(arguments).file
    try:
        tokens = file_tokens(path)
    except (ValueError, TypeError) as error:
        print(f"question_stats: {error}", file=sys.stderr)
        return 2
    print(yaml_snippet(path.name, tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
