"""A sweep over unequal lengths: what it runs, and that it recovers what they cost on a machine that is known."""

from dataclasses import replace

import pytest

from experiments.hardware.engine_fit import MeasuredShape, SkewShown
from experiments.hardware.engine_work import Processor, Work, terms_of, works_of
from experiments.hardware.machine_config import fit_rounds
from experiments.hardware.sweep import SweepSize, batches_of, measure_round
from sim.engine.engine import Engine
from sim.hardware.iteration_time import iteration_time
from sim.hardware.skew_time import AttentionSkew
from tests.experiments.known_machine import SETTINGS, TRUE, built, machine, replaying
from tests.factories import make_expert

PROCESSOR = Processor(num_sms=16, graph_max_seqs=16)
LONG = replace(SETTINGS, max_num_seqs=32, kv_cache_tokens=200_000)
CONTEXT = 4096
SIZE = SweepSize(num_rounds=1, decode_steps=24, longest_prompt=2048, most_tokens=32_768)
HEAVY = replace(TRUE, context_tokens=CONTEXT, per_kv_token_s=1e-6)
"""Attention is most of what a step takes, so that unequal lengths show."""


def known(streams):
    return machine(HEAVY, processor=PROCESSOR, skew=SkewShown(streams=streams, error_before=0.0, error_after=0.0))


def measured(hardware):
    """One round on a machine that is known, by the clock as on a GPU."""
    expert = replace(make_expert("A", shape=HEAVY.shape), context_tokens=CONTEXT)
    cluster, make = replaying(hardware, [expert], num_workers=1, settings=LONG)
    return MeasuredShape(expert, LONG, [measure_round(expert, cluster, make, LONG, SIZE, 0, "round", by_cpu=False)])


def refit(rounds, processor):
    return built(fit_rounds([rounds], name="again", memory_gib=8.0, source="a test", processor=processor))


def replay_s(hardware, requests):
    time = iteration_time(hardware, HEAVY.shape, 1)
    engine = Engine(iteration_time=time, settings=LONG, kv_tokens=200_000, context_tokens=CONTEXT)
    for number, (prompt, output) in enumerate(requests):
        engine.submit(number, prompt, output, 0.0)
    return max(request.finished_ts for request in engine.advance_to(float("inf")))


UNSEEN = ((1800, 300),) + ((50, 290),) * 15
"""One long sequence: the others wait for it at every step."""


@pytest.mark.parametrize("streams", [9.0, 14.0])
def test_what_unequal_lengths_cost_is_recovered(streams):
    """The model has four KV heads: 9 and 14 pairs are 2.25 and 3.5 sequences."""
    hardware = known(streams)
    rounds = measured(hardware)
    again = refit(rounds, PROCESSOR)
    assert again.attention_streams == pytest.approx(streams, abs=1)
    assert replay_s(again, UNSEEN) == pytest.approx(replay_s(hardware, UNSEEN), rel=0.02)
    blind = refit(rounds, replace(PROCESSOR, num_sms=0))
    assert blind.attention_streams == 0
    assert replay_s(blind, UNSEEN) < 0.9 * replay_s(hardware, UNSEEN), "else nothing was to be recovered"


def test_where_lengths_cost_nothing_none_is_found():
    again = refit(measured(known(0.0)), PROCESSOR)
    assert again.attention_streams == 0
    assert replay_s(again, UNSEEN) == pytest.approx(replay_s(known(0.0), UNSEEN), rel=0.02)


def test_graphs_pad_what_a_step_computes():
    requests = [(3, 3)] * 5
    plain, padded = (
        works_of(requests, SETTINGS, kv_tokens=65536, context_tokens=512, processor=processor)
        for processor in (Processor(), Processor(graph_max_seqs=16))
    )
    assert (plain[1].num_tokens, padded[1].num_tokens) == (5, 8)
    assert (plain[0], padded[1].num_seqs) == (padded[0], 5), "prompts are not padded, and five sequences are sampled"


def test_what_steps_wait_for_counts_as_tokens_read():
    skew = AttentionSkew(block_s=2.0, num_sms=4, num_heads=1, min_seqs=3)
    decode = Work(10, 3, 0, 0, 10 * 80 + 3 * 45, 0, 0, 3, (10, 20, 50))
    beside = Work(1, 3, 1, 1, 0, 70, 9, 5, (20, 50), ((3, 0),))
    small = Work(10, 2, 0, 0, 500, 0, 0, 2, (20, 50))
    read = [terms_of([work], is_start=False, skew=skew)[5] for work in (decode, beside, small)]
    alone, together = skew.longest_wait_s(50, 80 / 3), skew.beside_prefill_s([(3, 0)], 2, 35.0, (20, 50))
    assert read == pytest.approx([935 + 10 * alone, together, 500]), (
        "small batches are split, those beside a prompt never"
    )
    assert together > 0
    assert terms_of([decode], is_start=False)[5] == 935


def test_long_and_unequal_batches_fit_into_memory_and_time():
    batches = batches_of(CONTEXT, LONG, SIZE)
    unequal = [batch for batch in batches if len(set(batch)) == 2 and batch[0][0] == 2048]
    assert {(len(batch), sum(prompt == 2048 for prompt, _ in batch)) for batch in unequal} >= {(8, 1), (8, 4), (32, 1)}
    for batch in unequal:
        mean = sum(prompt for prompt, _ in batch) // len(batch)
        assert ((mean, 24),) * len(batch) in batches, "beside equal ones that read as much"
    assert ((2048, 24),) * 16 in batches
    alike = [batch for batch in batches if len(set(batch)) == 1]
    assert max(sum(prompt for prompt, _ in batch) for batch in alike) == SIZE.most_tokens
    tight = batches_of(CONTEXT, replace(LONG, kv_cache_tokens=8192), SIZE)
    equal = [batch for batch in tight if len(set(batch)) == 1]
    assert all(len(batch) * (batch[0][0] + batch[0][1]) <= 8192 for batch in equal)


@pytest.mark.parametrize("field", ["num_sms", "graph_max_seqs"])
def test_a_processor_is_checked(field):
    with pytest.raises(ValueError, match=f"processor: {field} must be"):
        Processor(**{field: -1})
