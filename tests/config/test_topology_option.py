"""A tree of agents by one override: who sits where, and that every question is answered once."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.commands.command_line import QUICK, SMALL, prepare, run_into
from tests.experiments.tiny_pool.small import write_scores
from tests.run_tables import answers_of, calls_of

FEW = (*SMALL, *QUICK, "world.output_tokens.LlamaR1.mean.value=400", "exit=never")
TINY = ("exit=never", "workload=tiny_mcq", "pool=tiny", "cluster=local", "workload.num_questions=12", *QUICK)
NUM_QUESTIONS = 10
LAYERS = {"tree": (9, 3, 1), "all_to_all": (9, 9, 1)}


def seats(*overrides: str) -> list[str]:
    graph = prepare(*overrides).job.graph
    return [" ".join(expert.name for node in layer for expert in node.experts) for layer in graph.layers]


def test_numbers_seat_the_experts_that_the_workload_asks_and_at_the_top_its_aggregator() -> None:
    assert seats(*FEW, "topology=tree") == [
        " ".join(["LlamaR1 Gemma Qwen"] * 3), "LlamaR1 Gemma Qwen", "LlamaR1"
    ]  # fmt: skip
    assert seats(*FEW, "topology=tree", "workload.aggregator=GLM")[-1] == "GLM"
    assert seats(*FEW, "topology=tree", "topology.layers=[2,[Qwen,Gemma],[GLM]]", "topology.fan_in=[1,null]") == [
        "LlamaR1 Gemma", "Qwen Gemma", "GLM",
    ]  # fmt: skip


def test_above_the_first_layer_sits_who_can_read_what_was_said() -> None:
    """Gemma's context does not take nine responses where a prompt leaves it room for nearly all of the rest."""
    tight = "topology.min_output_tokens=7900"
    assert seats(*FEW, "topology=all_to_all", "topology.layers=[9,2,1]")[1] == "LlamaR1 Gemma"
    cut = "pool.experts.Gemma.context_tokens=1100"
    assert seats(*FEW, "topology=all_to_all", "topology.layers=[9,2,1]", cut, tight)[1] == "LlamaR1 Qwen"


def test_the_default_is_flat() -> None:
    assert prepare(*FEW).job.graph == prepare(*FEW, "topology=flat").job.graph
    assert [node.name for node in prepare(*FEW).job.graph.nodes] == ["propose", "aggregate"]


@pytest.mark.parametrize("topology", ["tree", "all_to_all"])
@pytest.mark.parametrize(
    "option",
    [
        "pipeline.barrier=true",
        "pipeline.barrier=false",
        "pipeline.barrier=false pipeline.forecast=true",
        "pipeline.overlap=true",
    ],
)
def test_every_question_is_answered_once_however_layers_follow(tmp_path: Path, topology: str, option: str) -> None:
    folder = run_into(tmp_path / "run", *FEW, f"topology={topology}", *option.split())
    calls = calls_of(folder)
    assert {row["status"] for row in calls.values()} == {"finished"}
    per_question = Counter((row["question"], row["role"]) for row in calls.values())
    layers = dict(zip(("layer_1", "layer_2", "layer_3"), LAYERS[topology], strict=True))
    assert {role for _, role in per_question} == set(layers)
    assert all(number == layers[role] for (_, role), number in per_question.items())
    answers = answers_of(folder)
    assert len({row["question"] for row in answers}) == len(answers) == NUM_QUESTIONS
    assert {row["answer"] == calls[row["question"], "layer_3", 0]["answer"] for row in answers} == {True}
    check_order(calls, topology, waits_for_layers=option == "pipeline.barrier=true")


def check_order(calls: dict[tuple, dict], topology: str, *, waits_for_layers: bool) -> None:
    """A call of the second layer starts when its own precursors have ended, or with a barrier when all have."""
    ends_ts = defaultdict(float)
    for (question, node, _), row in calls.items():
        ends_ts[question, node] = max(ends_ts[question, node], row["finished_ts"])
    last_ts = max(end_ts for (_, node), end_ts in ends_ts.items() if node.startswith("layer_1"))
    early = 0
    for (question, node, _), row in calls.items():
        if node.startswith("layer_2"):
            assert row["admitted_ts"] >= ends_ts[question, node.replace("layer_2", "layer_1")]
            early += row["admitted_ts"] < last_ts
    assert (early == 0) == waits_for_layers


def test_answers_do_not_depend_on_the_order_of_layers(tmp_path: Path) -> None:
    said, scores = [], f"workload.profiles={write_scores(tmp_path)}"
    for option in ("pipeline.barrier=true", "pipeline.barrier=false"):
        folder = tmp_path / option.rpartition("=")[2]
        calls = calls_of(run_into(folder, *TINY, scores, "topology=tree", option))
        said.append({key: (row["answer"], row["output_tokens"]) for key, row in calls.items()})
    assert said[0] == said[1]
    assert {row[0] for row in said[0].values()} != {None}
