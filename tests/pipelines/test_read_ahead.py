"""Prompts that can be prefilled slot by slot: a beginning is what every later prompt begins with."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.chat import count_text_tokens
from mosaic.core.results import CallStatus, Response
from mosaic.core.workload import AGGREGATE
from mosaic.pipelines.aggregation import fits_context
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.pipelines.walk import walk
from tests.answered_questions import FAILED, answered, make_moa, make_question, make_tree
from tests.factories import make_expert

ORDER = PrefillOrder(mean_output_tokens={"propose": {"A": 300.0, "B": 20.0, "C": 90.0}})


def reading(graph: CallGraph, order: PrefillOrder = ORDER) -> CallGraph:
    return replace(graph, prefill_order=order)


def openings(graph: CallGraph, question, first, done) -> list[tuple[str, int, list[int]]]:
    """Node, how many are read, and the slots in the order of reading."""
    return [
        (call.key.node, num_read, [key.slot for key in call.after])
        for call, num_read in walk(graph, question, first, done).openings()
    ]


texts = st.text(alphabet="abc d\n", min_size=1, max_size=2000).filter(str.strip)
statuses = st.sampled_from([CallStatus.FINISHED, CallStatus.FINISHED, CallStatus.FAILED, CallStatus.CUT])


@given(st.lists(st.tuples(texts, statuses), min_size=1, max_size=5), st.integers(800, 4000), st.randoms())
def test_every_beginning_is_what_the_whole_prompt_begins_with(said, context_tokens, luck):
    question = make_question("q", text="Which of the four?")
    asked, first, done = answered(question, [None] * len(said))
    for call, (text, status) in zip(first, said, strict=True):
        response = Response(text)
        done[call.key] = structs.replace(
            done[call.key], status=status, output_tokens=count_text_tokens(text), response=response
        )
    writer = make_expert("W", context_tokens=context_tokens, max_output_tokens=100)
    graph = make_moa(Never())
    graph = reading(replace(graph, nodes=(graph.nodes[0], replace(graph.nodes[1], experts=(writer,)))))
    if not fits_context(asked, writer, len(said)):
        assert not list(walk(graph, asked, first, {}).openings())
        return
    if all(record.status is not CallStatus.FINISHED for record in done.values()):
        return  # it answers alone, and reads no beginning that anybody could have known
    ends = [record.status for record in done.values()]
    if CallStatus.CUT in ends and ends.count(CallStatus.FINISHED) == 1:
        assert walk(graph, asked, first, done).submit == ()
        return  # what is left alone stands
    (call,) = walk(graph, asked, first, done).submit
    whole = graph.prompt(asked, call, done)
    ended, last = {}, 0
    for key in luck.sample(sorted(done), len(done))[:-1]:  # whoever ends first
        ended[key] = done[key]
        ((begun, num_read),) = walk(graph, asked, first, ended).openings()
        assert begun == structs.replace(call, prompt_tokens=begun.prompt_tokens), "it names the call that is to come"
        assert last <= begun.prompt_tokens <= call.prompt_tokens
        last = begun.prompt_tokens
        inputs = {key: done[key] for key in begun.after[:num_read]}
        assert whole.startswith(graph.prompt(asked, begun, inputs, is_whole=False))


def test_the_shortest_by_prediction_are_read_first_and_as_far_as_they_have_ended():
    question, first, done = answered(make_question("q"), ["A", "B", "C"])
    graph, (long, short, middle) = reading(make_moa(Never())), [call.key for call in first]
    assert openings(graph, question, first, {}) == [(AGGREGATE, 0, [1, 2, 0])]
    assert openings(graph, question, first, {long: done[long]}) == [(AGGREGATE, 0, [1, 2, 0])]
    assert openings(graph, question, first, {short: done[short], long: done[long]}) == [(AGGREGATE, 1, [1, 2, 0])]
    assert openings(graph, question, first, {short: done[short], middle: done[middle]}) == [(AGGREGATE, 2, [1, 2, 0])]
    assert openings(graph, question, first, done) == []
    (call,) = walk(graph, question, first, done).submit
    assert [key.slot for key in call.after] == [1, 2, 0]


def test_a_graph_that_does_not_read_ahead_has_no_beginnings():
    assert list(walk(make_moa(Never()), *answered(make_question("q"), ["A", "B", "C"])).openings()) == []


def test_nothing_is_read_for_a_gate_that_is_settled():
    question, first, done = answered(make_question("q"), ["A", "A", "C"])
    agreed = {key: done[key] for key in list(done)[:2]}
    assert openings(reading(make_moa(Majority())), question, first, agreed) == []
    assert len(openings(reading(make_moa(Never())), question, first, agreed)) == 1


def test_every_layer_begins_as_soon_as_it_can():
    question, first, done = answered(make_question("q"), ["A", FAILED])
    graph = reading(make_tree(), PrefillOrder())
    begun = openings(graph, question, first, {first[0].key: done[first[0].key]})
    assert begun == [("merge", 1, [0, 1]), ("merge", 1, [0, 1]), ("final", 0, [0, 1])]
    calls = walk(graph, question, first, done).submit
    assert [call.key.node for call in calls] == ["merge", "merge"]
    assert openings(graph, question, first, done) == [("final", 0, [0, 1])]


def test_a_response_keeps_its_own_share_whatever_the_others_leave():
    """Two places share a room of 400 tokens or so: the long response gets half of it though the other is short."""
    question, first, done = answered(make_question("q", prompt_tokens=20), ["A", "B"])
    done = {key: structs.replace(record, output_tokens=(5, 5000)[key.slot]) for key, record in done.items()}
    writer = make_expert("W", context_tokens=1200, max_output_tokens=400)
    graph = make_moa(Never())
    graph = replace(graph, nodes=(graph.nodes[0], replace(graph.nodes[1], experts=(writer,))))
    (shared,) = walk(graph, question, first, done).submit
    (placed,) = walk(reading(graph), question, first, done).submit
    assert shared.prompt_tokens == 800
    assert placed.prompt_tokens < 700
