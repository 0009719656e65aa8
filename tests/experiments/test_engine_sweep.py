"""Coefficients of a machine from sessions on it: what a session held, what the fit recovers, what the file says."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from msgspec import structs

from experiments.hardware.engine_fit import MeasuredShape, SkewShown, fit_loads, fit_shapes
from experiments.hardware.engine_work import Processor, Work, terms_of, works_of
from experiments.hardware.machine_config import fit_rounds, hardware_config, machine_yaml, mirrored_settings
from experiments.hardware.sweep import (
    WARM_UP,
    MeasuredRound,
    MeasuredSession,
    SweepSize,
    batches_of,
    measure_round,
    measured_sessions,
    round_of,
)
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.events import Closed, Finished
from mosaic.core.results import CallStatus
from mosaic.runtime.static_plan import execute
from sim.hardware.iteration_time import iteration_time
from sim.hardware.skew_time import AttentionSkew
from tests.experiments.known_machine import (
    SETTINGS,
    SHAPE,
    TRUE,
    built,
    fit,
    fit_machine,
    machine,
    replaying,
    session_s,
)
from tests.factories import make_expert

EXPERT = make_expert("A", shape=SHAPE, context_tokens=512)


class Changed:
    """A backend whose events are told differently."""

    def __init__(self, backend, change):
        self.name, self.apply, self._backend, self._change = backend.name, backend.apply, backend, change

    def events(self, **asked):
        return map(self._change, self._backend.events(**asked))


def with_cpu_s(make, cpu_s):
    """Say what processor time the sessions of a run took, by its name; None: not known."""

    def tell(event, name):
        if not isinstance(event, Closed):
            return event
        return structs.replace(event, record=replace(event.record, cpu_s=cpu_s(name, event.record.session)))

    return lambda outcomes, name: Changed(make(outcomes, name), lambda event: tell(event, name))


MIXTURES = [
    tuple((20 + 7 * (i % 5), 3 + 11 * (i % 7)) for i in range(60)),
    ((40, 90),) * 3,
    tuple((200, 2 + i) for i in range(40)),
]


def test_what_a_session_held_by_hand():
    works = works_of([(3, 3), (3, 3)], SETTINGS, kv_tokens=65536, context_tokens=512)
    assert works == [Work(1, 2, 1, 2, 0, 0, 9 + 9, 6), Work(2, 2, 0, 0, (4 + 4) + (5 + 5), 0, 0, 2)]
    total = terms_of(works, is_start=True)
    assert list(total) == [1, 3, 6, 1, 2, 18, 0, 18, 4 + 2 * 2, 2, 0, 0, 0, 0]


def test_what_a_session_held_prices_it_as_the_simulator_does():
    hardware = machine(TRUE)
    slopes = [2.5e-5, 1e-4 / 12, 3e-4 / 48, 2.5e-3 / 192, 7e-3 / 768, 1e-2 / 1024]
    coefficients = np.array([0.0, 1.5e-3, 5e-5, 1e-3, 2e-4, 3e-7, 6e-7, 4e-8, *slopes])
    for requests in MIXTURES:
        terms = terms_of(works_of(requests, SETTINGS, kv_tokens=65536, context_tokens=512), is_start=True)
        # The grid of prefills is linear between its rows, which the square of a prompt is not.
        assert terms @ coefficients == pytest.approx(session_s(hardware, SHAPE, requests), rel=0.01)


def fitted(sessions):
    measured = MeasuredShape(EXPERT, SETTINGS, [MeasuredRound(sessions=tuple(sessions), ready_s=())])
    (found,), skew = fit_shapes([measured], Processor())
    assert skew is None, "nothing is known of how many sequences are read at once"
    return found


def true_sessions():
    hardware = machine(TRUE)
    size = SweepSize()
    for batch in batches_of(512, SETTINGS, size):
        seconds = session_s(hardware, SHAPE, batch)
        first = session_s(hardware, SHAPE, [(prompt, 1) for prompt, _ in batch[: SETTINGS.max_num_seqs]])
        yield MeasuredSession(requests=batch, serve_s=seconds, prompts_read_s=first, last_token_s=seconds)


def slower(session, times):
    seconds = ("serve_s", "prompts_read_s", "last_token_s")
    return replace(session, **{name: times * getattr(session, name) for name in seconds})


def test_disturbed_sessions_do_not_move_the_fit():
    """One of five repeats of each session takes three times as long: a mean would follow, by 40%."""
    sessions = 5 * list(true_sessions())
    assert len(sessions) % 25 != 0, "else the same ones are disturbed in every repeat"
    quiet = fitted(sessions)
    noisy = fitted([session if i % 5 else slower(session, 3) for i, session in enumerate(sessions)])
    assert noisy.base_s == pytest.approx(quiet.base_s, rel=0.05)
    assert noisy.dense(64) + 64 * noisy.per_seq_s == pytest.approx(quiet.dense(64) + 64 * quiet.per_seq_s, rel=0.05)
    assert quiet.mape["long_stretches"] < 0.01 < noisy.mape["long_stretches"]


def test_processor_time_counts_where_it_is_known():
    by_cpu = [replace(slower(session, 2), cpu_s=session.serve_s) for session in true_sessions()]
    assert fitted(by_cpu).base_s == pytest.approx(TRUE.base_s, rel=0.1)


def test_loads_of_one_size_are_fixed_and_of_two_sizes_affine():
    assert fit_loads({1000: 2.5}) == (2.5, None)
    fixed_s, rate = fit_loads({1000: 2.0, 3000: 3.0})
    assert (fixed_s, rate) == (pytest.approx(1.5), pytest.approx(2000.0))
    assert fit_loads({1000: 2.0, 3000: 2.0})[1] is None


def test_the_file_is_read_back_as_it_was_written():
    config = hardware_config([TRUE], (2.0, None), name="machine", memory_gib=8.0, source="a test")
    text = machine_yaml(config, "python experiments/measure_gpu.py --name machine")
    assert text.startswith("# Measured by\n#   python experiments/measure_gpu.py --name machine\n")
    assert yaml.safe_load(text) == config
    time = iteration_time(built(yaml.safe_load(text)), SHAPE, 1)
    decode_s = 1.5e-3 + 8 * 5e-5 + (1e-4 + 1e-4 * 4 / 12) + 3e-7 * 800
    assert time.decode_span_s(8, 800, 1) == pytest.approx(decode_s, rel=1e-3)
    mixed_s = 1.5e-3 + 9 * 5e-5 + (5e-4 + 2.5e-3 * (72 - 64) / 192) + 6e-7 * 800 + 1e-3 + 2e-4 + 4e-8 * 64 * 64
    assert time.mixed_s([(64, 0)], 8, 800) == pytest.approx(mixed_s, rel=1e-3)


def test_the_sweep_stays_inside_the_context_and_covers_the_batch():
    for context in (64, 512, 32768):
        batches = batches_of(context, SETTINGS, SweepSize())
        assert all(prompt + output <= context and output >= 1 for batch in batches for prompt, output in batch)
        assert {1, SETTINGS.max_num_seqs, 3 * SETTINGS.max_num_seqs} <= {len(batch) for batch in batches}
        assert WARM_UP not in batches


def test_a_call_that_failed_ends_the_sweep():
    cluster, make = replaying(machine(TRUE), [EXPERT])

    def fail(event):
        is_first = isinstance(event, Finished) and event.record.key.question.endswith("-0-0")
        return (
            structs.replace(event, record=structs.replace(event.record, status=CallStatus.FAILED))
            if is_first
            else event
        )

    with pytest.raises(BackendError, match=r"every call must finish, \d+ of \d+ did"):
        fit_machine([EXPERT], cluster, lambda *known: Changed(make(*known), fail), size=SweepSize())


def test_processor_time_is_taken_by_session():
    cluster, make = replaying(machine(TRUE), [EXPERT])
    runs = []

    def cpu_s(run, session):
        runs.append(run)
        return 0.01

    size = SweepSize(num_rounds=2)
    config = fit_machine([EXPERT], cluster, with_cpu_s(make, cpu_s), by_cpu=True, size=size)
    assert list(dict.fromkeys(runs)) == ["sweep-0-0-0", "sweep-0-1-0"]
    iterations = [batch[0][1] for batch in batches_of(512, SETTINGS, SweepSize()) if len(batch) == 1]
    assert config["cpu_base_s"] < 0.01 / min(iterations), "ten milliseconds a session, and none of the clock's seconds"


def test_the_simulator_is_told_how_the_engines_schedule():
    experts = [make_expert("A", shape=SHAPE, context_tokens=8192)]
    cpu = ModelLoading(device=Device.CPU, dtype="float32")
    on_cpu = EngineOptions(max_num_seqs=32, block_size=32, kv_cache_memory_bytes=2**26, loading=cpu)
    settings = mirrored_settings(on_cpu, experts)
    assert settings == EngineOptions(
        order=Order.MIXED, max_num_seqs=32, max_num_batched_tokens=8192, block_size=32,
        kv_cache_tokens=2**26 // 2048, enable_prefix_caching=False,
    )  # fmt: skip
    on_gpu = EngineOptions(block_size=16, max_num_batched_tokens=1024)
    settings = mirrored_settings(on_gpu, experts)
    assert (settings.max_num_batched_tokens, settings.block_size, settings.kv_cache_tokens) == (1024, 16, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SweepSize(num_rounds=0), "engine sweep: num_rounds must be"),
        (lambda: SweepSize(decode_steps=0), "engine sweep: decode_steps must be"),
        (lambda: Processor(num_sms=-1), "processor: num_sms must be"),
        (lambda: Processor(graph_max_seqs=-1), "processor: graph_max_seqs must be"),
        (
            lambda: MeasuredSession(requests=(), serve_s=1.0, prompts_read_s=0.5, last_token_s=1.0),
            "measured session: requests must be at least one",
        ),
        (lambda: batches_of(32, SETTINGS, SweepSize()), "context_tokens must be at least 64"),
        (lambda: fit_loads({}), "engine sweep: loads must be at least one"),
    ],
)
def test_what_cannot_be_swept_or_fitted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_warm_up_sessions_are_left_out():
    cluster, make = replaying(machine(TRUE), [EXPERT])
    content = round_of(EXPERT, 2, batches_of(512, SETTINGS, SweepSize()), 0, "run")
    result = execute(content.plan, content.calls, make(content.outcome, "run"))
    measured = measured_sessions(result, content.batches, by_cpu=False)
    assert len(measured) == len(result.sessions) - cluster.num_workers
    assert sorted(session.requests for session in measured) == sorted(2 * batches_of(512, SETTINGS, SweepSize()))


def test_of_repeats_the_median_counts():
    """A third of all repeats took twice as long, and a third half as long again: what runs will meet is between."""
    factors = (1.0, 2.0, 1.5)
    repeats = [replace(session, cpu_s=factor * session.serve_s) for session in true_sessions() for factor in factors]
    found = fitted(repeats)
    assert found.base_s == pytest.approx(1.5 * TRUE.base_s, rel=0.1)


def test_a_session_over_several_workers_counts_by_the_clock():
    expert = make_expert("A", shape=SHAPE, tp_degree=2, context_tokens=512)
    hardware = machine(replace(TRUE, tp_degree=2))

    cluster, make = replaying(hardware, [expert])
    make = with_cpu_s(make, lambda run, session: 1e6)  # of two threads, which is not the session's
    again = built(fit_machine([expert], cluster, make, by_cpu=True, size=SweepSize(num_rounds=1)))
    assert again == built(fit(hardware, [expert], by_cpu=True, size=SweepSize(num_rounds=1)))
    assert [table.tp_degree for table in again.tables] == [2]
    assert again.load_s(SHAPE, 2) == pytest.approx(2.0)


class Disturbed:
    """A machine whose first run of each round, or every run, had a session that was tried again."""

    def __init__(self, make, *, always=False):
        self.make, self.always, self.names = make, always, []

    def __call__(self, outcomes, name):
        self.names.append(name)
        backend = self.make(outcomes, name)
        if not self.always and not name.endswith("-0"):
            return backend
        first = []  # call that is told of

        def disturb(event):
            if not isinstance(event, Finished) or first:
                return event
            first.append(event.record.key)
            return structs.replace(event, record=structs.replace(event.record, attempt=1))

        return Changed(backend, disturb)


def test_a_round_with_an_interrupted_session_is_measured_again():
    cluster, make = replaying(machine(TRUE), [EXPERT])
    once = Disturbed(make)
    config = fit_machine([EXPERT], cluster, once, size=SweepSize(num_rounds=1))
    assert once.names == ["sweep-0-0-0", "sweep-0-0-1"]
    assert config["cpu_base_s"] > 0
    with pytest.raises(DisturbedSweepError, match="sessions fail again and again"):
        fit_machine([EXPERT], cluster, Disturbed(make, always=True), size=SweepSize(num_rounds=1))


def test_a_session_whose_processor_time_is_lost_counts_as_interrupted():
    cluster, make = replaying(machine(TRUE), [EXPERT])
    names = []

    def cpu_s(run, session):
        names.append(run)
        return 0.01 if run == "sweep-0-0-1" or session == 0 else None

    size = SweepSize(num_rounds=1)
    fit_machine([EXPERT], cluster, with_cpu_s(make, cpu_s), size=size, by_cpu=True)
    assert list(dict.fromkeys(names)) == ["sweep-0-0-0", "sweep-0-0-1"]


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
    expert = make_expert("A", shape=HEAVY.shape, context_tokens=CONTEXT)
    cluster, make = replaying(hardware, [expert], num_workers=1, settings=LONG)
    return MeasuredShape(expert, LONG, [measure_round(expert, cluster, make, LONG, SIZE, 0, "round", by_cpu=False)])


def refit(rounds, processor):
    return built(fit_rounds([rounds], name="again", memory_gib=8.0, source="a test", processor=processor))


def unseen_s(hardware):
    """How long one long sequence takes for which the others wait at every step."""
    requests = ((1800, 300),) + ((50, 290),) * 15
    return session_s(hardware, HEAVY.shape, requests, settings=LONG, context_tokens=CONTEXT)


@pytest.mark.parametrize("streams", [9.0, 14.0])
def test_what_unequal_lengths_cost_is_recovered(streams):
    """The model has four KV heads: 9 and 14 pairs are 2.25 and 3.5 sequences."""
    hardware = known(streams)
    rounds = measured(hardware)
    again = refit(rounds, PROCESSOR)
    assert again.attention_streams == pytest.approx(streams, abs=1)
    assert unseen_s(again) == pytest.approx(unseen_s(hardware), rel=0.02)
    blind = refit(rounds, replace(PROCESSOR, num_sms=0))
    assert blind.attention_streams == 0
    assert unseen_s(blind) < 0.9 * unseen_s(hardware), "else nothing was to be recovered"


def test_where_lengths_cost_nothing_none_is_found():
    again = refit(measured(known(0.0)), PROCESSOR)
    assert again.attention_streams == 0
    assert unseen_s(again) == pytest.approx(unseen_s(known(0.0)), rel=0.02)


def test_graphs_pad_what_a_step_computes():
    requests = [(3, 3)] * 5
    plain, padded = (
        works_of(requests, SETTINGS, kv_tokens=65536, context_tokens=512, processor=processor)
        for processor in (Processor(), Processor(graph_max_seqs=16))
    )
    assert (plain[1].num_tokens, padded[1].num_tokens) == (5, 8)
    assert (plain[0], padded[1].num_seqs) == (padded[0], 5), "prompts are not padded, and five sequences are sampled"


def test_what_steps_wait_for_counts_as_tokens_read():
    skew = AttentionSkew(block_s=2.0, min_seqs=3)
    decode = Work(10, 3, 0, 0, 10 * 80 + 3 * 45, 0, 0, 3, 50)
    beside = Work(1, 3, 1, 1, 0, 70, 9, 5, 50, ((3, 0),))
    small = Work(10, 2, 0, 0, 500, 0, 0, 2, 50)
    read = [terms_of([work], is_start=False, skew=skew)[5] for work in (decode, beside, small)]
    alone, together = skew.alone_s(50, 80 / 3), skew.beside_prefill_s(50, 35.0, [(3, 0)])
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
