"""Layers of agents as nodes: who reads whom, and when a call can start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource, comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.topology import in_turn, layered_nodes
from mosaic.pipelines.walk import walk
from tests.answered_questions import FAILED, ended, make_batch, make_question
from tests.factories import make_expert

EXPERTS = tuple(make_expert(name) for name in "ABCD")
TREE = ([in_turn(EXPERTS, 9), in_turn(EXPERTS, 3), in_turn(EXPERTS, 1)], [3, 3])
Shape = tuple[list[int], list[int | None]]


@st.composite
def shapes(draw) -> Shape:
    """Sizes of layers from the first on, with fan-ins that divide them."""
    sizes = [draw(st.integers(1, 3))]
    fan_in: list[int | None] = []
    for _ in range(draw(st.integers(1, 3))):
        has_several = not fan_in and sizes[0] > 1
        width = draw(st.none() if has_several else st.one_of(st.none(), st.integers(1, 3)))
        fan_in.insert(0, width)
        sizes.insert(0, draw(st.integers(1, 6)) if width is None else width * sizes[0])
    return sizes, fan_in


def graph_of(nodes: tuple[Node, ...]) -> CallGraph:
    return CallGraph(nodes=nodes, compare=comparisons())


def built(shape: Shape) -> tuple[Node, ...]:
    sizes, fan_in = shape
    return layered_nodes([in_turn(EXPERTS, size) for size in sizes], fan_in)


def test_a_tree_of_nine_three_and_one() -> None:
    nodes = layered_nodes(*TREE)
    assert {node.name: ("".join(expert.name for expert in node.experts), node.after) for node in nodes} == {
        "layer_1_1": ("ABC", ()),
        "layer_1_2": ("DAB", ()),
        "layer_1_3": ("CDA", ()),
        "layer_2_1": ("A", ("layer_1_1",)),
        "layer_2_2": ("B", ("layer_1_2",)),
        "layer_2_3": ("C", ("layer_1_3",)),
        "layer_3": ("A", ("layer_2_1", "layer_2_2", "layer_2_3")),
    }
    assert [node.role for node in nodes] == ["layer_1"] * 3 + ["layer_2"] * 3 + ["layer_3"]


def test_all_to_all_is_a_node_a_layer() -> None:
    nodes = layered_nodes([in_turn(EXPERTS, size) for size in (9, 9, 1)], [None, None])
    assert [(node.name, len(node.experts), node.after) for node in nodes] == [
        ("layer_1", 9, ()), ("layer_2", 9, ("layer_1",)), ("layer_3", 1, ("layer_2",)),
    ]  # fmt: skip


@given(shapes())
def test_each_agent_reads_as_many_as_its_layer_says_and_a_tree_shares_none(shape: Shape) -> None:
    sizes, fan_in = shape
    nodes = built(shape)
    by_role = [[node for node in nodes if node.role == f"layer_{depth + 1}"] for depth in range(len(sizes))]
    assert [sum(len(node.experts) for node in layer) for layer in by_role] == sizes
    for size, layer in zip(sizes, by_role, strict=True):
        assert [expert for node in layer for expert in node.experts] == list(in_turn(EXPERTS, size))
    num_agents = {node.name: len(node.experts) for node in nodes}
    for depth, width in enumerate(fan_in, start=1):
        below = [node.name for node in by_role[depth - 1]]
        for node in by_role[depth]:
            assert set(node.after) <= set(below)
            assert sum(num_agents[name] for name in node.after) == (width or sizes[depth - 1])
        read = [name for node in by_role[depth] for _ in node.experts for name in node.after]
        assert read == below * (1 if width is not None else sizes[depth])


@given(shapes(), st.randoms(use_true_random=False))
def test_every_agent_speaks_once_as_soon_as_those_it_reads_have_and_the_last_layer_answers(
    shape: Shape, random
) -> None:
    graph = graph_of(built(shape))
    question = make_question("q", answer="B")
    first = graph.first_calls(make_batch((question, 3)))
    done, waiting = {}, list(first)
    sizes, fan_in = shape
    num_read = {"1": 0} | {str(depth + 2): width or sizes[depth] for depth, width in enumerate(fan_in)}
    while waiting:
        call = waiting.pop(random.randrange(len(waiting)))
        is_last = call.key.node == f"layer_{len(shape[0])}"
        assert all(key in done for key in call.after)
        assert len(call.after) == num_read[call.key.node.split("_")[1]], "it reads all that it is to read"
        done[call.key] = ended(call, "B" if is_last else random.choice(["A", "C", None, FAILED]))
        known = {other.key for other in waiting}
        step = walk(graph, question, first, done)
        waiting += [new for new in step.submit if new.key not in known and new.key not in done]
    assert len(done) == sum(shape[0])
    assert step.answer is not None
    assert (step.answer.answer, step.answer.source, step.answer.correct) == ("B", AnswerSource.AGGREGATOR, True)


@pytest.mark.parametrize(
    ("sizes", "fan_in", "message"),
    [
        ([3, 1], [3, 3], r"topology.fan_in must be a number by upper layer.*, got \[3, 3\]"),
        ([8, 3], [3], "topology.fan_in must be such that the 3 agents of layer 2 read the 8 below them, .* got 3"),
        ([4, 2], [2], "topology.fan_in must be null for a last layer of several agents, got 2"),
        ([3, 3], [0], "topology.fan_in must be at least 1, got 0"),
        ([3, 1], ["x"], "topology.fan_in must be a whole number"),
    ],
)
def test_bad_layers_are_refused(sizes: list[int], fan_in: list[int | None], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        built((sizes, fan_in))
