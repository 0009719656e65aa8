"""What calibration answers are of: a promise that is made from them holds there, and nowhere else."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.node import Node

Setting: TypeAlias = Mapping[str, str]
"""All that decides answers, but for the questions and the luck: what it is, and how it is."""

METADATA_KEY = b"mosaic.setting"
"""Of the parquet table."""
ANSWERS, EXPERT = "answers", "expert "
_MOST_NAMED = 3


def describe_setting(
    workload: Workload, experts: Sequence[Expert], nodes: Sequence[Node], *, benchmark: str, answers: str
) -> Setting:
    """Describe what a run's answers come from.

    Parameters
    ----------
    workload
        Its questions are not named: calibration questions are others of the same benchmark.
    experts
        The pool. The rest of it is what decides answers: how an expert is placed does not.
    nodes
        Of the call graph: what the gate reads, and who answers where it does not skip.
    benchmark
        Name that all parts of the workload share.
    answers
        Where they come from: measured, or the source of the simulated world's.
    """
    num_slots = max(Counter(call.key.question for call in workload.calls).values())
    return {
        "workload": benchmark,
        ANSWERS: answers,
        **{f"node {node.name}": _describe_node(node, num_slots) for node in nodes},
        **{f"{EXPERT}{expert.name}": _describe_expert(expert) for expert in experts},
    }


def load_setting(path: str | Path) -> Setting:
    """Read what a file of calibration answers is of.

    Raises
    ------
    ValueError
        If it does not say.
    """
    import pyarrow.parquet as pq

    text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"gate.calibration must say what its answers are of (workload, nodes, experts), got {path}, which does "
            "not: an earlier version wrote it, or another tool. Make it again, with gate=never"
        )
    setting: dict[str, str] = json.loads(text)
    return setting


def encode_setting(setting: Setting) -> dict[bytes, bytes]:
    """Encode as metadata of the parquet table."""
    return {METADATA_KEY: json.dumps(setting).encode()}


def name_differences(there: Setting, here: Setting) -> str:
    """Say in what two settings differ; empty: in nothing.

    Examples
    --------
    >>> name_differences({"workload": "mmlu_pro", "answers": "fitted"}, {"workload": "gpqa", "answers": "fitted"})
    "workload is 'mmlu_pro' there and 'gpqa' here"
    """
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    named = [f"{key} is {there.get(key, 'absent')!r} there and {here.get(key, 'absent')!r} here" for key in keys]
    more = f" (and {len(keys) - _MOST_NAMED} more)" if len(keys) > _MOST_NAMED else ""
    return "; ".join(named[:_MOST_NAMED]) + more


def _describe_expert(expert: Expert) -> str:
    return (
        f"{expert.checkpoint}, temperature {expert.temperature:g}, max_output_tokens {expert.max_output_tokens}, "
        f"context_tokens {expert.context_tokens}"
    )


def _describe_node(node: Node, num_slots: int) -> str:
    who = ", ".join(expert.name for expert in node.experts) or f"up to {num_slots} recruited experts"
    return f"{who} after {', '.join(node.after)}, {node.when}" if node.after else who
