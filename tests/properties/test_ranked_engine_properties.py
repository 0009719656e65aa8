"""Ranks that step together against the naive ones, over random sessions."""

from dataclasses import dataclass
from math import inf

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sim.engine.ranked_engine import RankedEngine
from sim.hardware.curves import Curve, Grid
from sim.hardware.hardware import OperatorTable
from sim.hardware.moe_time import ExpertLayers
from sim.hardware.rank_time import RankTime
from tests.properties.test_engine_properties import CONTEXT, Drawn, assert_agrees, sessions
from tests.sim.oracle import assert_same, disturb, disturbances
from tests.sim.rank_oracle import RankOracle
from tests.sim.test_moe_time import make_sparse_shape, sparse_hardware

MOST_TOKENS = 1e6


@dataclass(frozen=True)
class Ranked:
    """A session over ranks: times of experts and exchange as the oracle has them."""

    session: Drawn
    num_ranks: int
    experts: tuple[int, int]
    experts_s: tuple[float, float, float]
    exchange_s: tuple[float, float]
    captured: int

    @property
    def requests(self):
        return self.session.requests

    def table(self) -> OperatorTable:
        """Give the experts' time as a grid: linear in both counts."""
        fixed_s, expert_s, token_s = self.experts_s
        rows, columns = (0.0, MOST_TOKENS), (0.0, float(self.experts[0]))
        values_s = tuple(tuple(fixed_s + expert_s * e + token_s * n for e in columns) for n in rows)
        table = sparse_hardware().table_for(self.shape(), 1)
        return OperatorTable(
            name="drawn",
            shape=self.shape(),
            tp_degree=1,
            source="drawn",
            dense=table.dense,
            attention=table.attention,
            experts=Grid(rows, columns, values_s),
        )

    def shape(self):
        num_experts, num_active = self.experts
        return make_sparse_shape(num_experts=num_experts, num_active_experts=num_active)

    def engine(self) -> tuple[RankedEngine, list]:
        fixed_s, token_s = self.exchange_s
        time = RankTime(
            self.session.iteration_time(),
            ExpertLayers(self.table(), self.shape(), self.num_ranks),
            all_reduce=Curve((0.0, 1.0), (fixed_s / 2, fixed_s / 2 + token_s / (2 * self.num_ranks))),
            bytes_per_token=2,
            captured=tuple(range(1, self.captured + 1)),
            num_ranks=self.num_ranks,
        )
        engine = RankedEngine(
            iteration_time=time,
            settings=self.session.options,
            kv_tokens=self.session.kv_tokens,
            context_tokens=CONTEXT,
        )
        requests = enumerate(self.requests)
        return engine, [engine.submit(i, *request[:4], prefix=request[4]) for i, request in requests]

    def oracle(self) -> RankOracle:
        session, (skew, eager, host) = self.session, self.session.lengths
        return RankOracle(
            session.time,
            session.options,
            session.kv_tokens,
            CONTEXT,
            skew=skew,
            eager=eager,
            host=host,
            num_ranks=self.num_ranks,
            experts=self.experts,
            experts_s=self.experts_s,
            exchange_s=self.exchange_s,
            captured=self.captured,
        )


@st.composite
def ranked(draw):
    num_experts = draw(st.integers(1, 64))
    return Ranked(
        session=draw(sessions()),
        num_ranks=draw(st.integers(1, 3)),
        experts=(num_experts, draw(st.integers(1, num_experts))),
        experts_s=draw(st.sampled_from([(0.0, 0.0, 0.0), (1.3e-3, 2.1e-4, 3.7e-6), (0.0, 1.7e-5, 5.1e-4)])),
        exchange_s=draw(st.sampled_from([(0.0, 0.0), (9.7e-4, 1.3e-5)])),
        captured=draw(st.sampled_from([0, 4, 24])),
    )


@settings(max_examples=150, deadline=None)
@given(ranked())
def test_ranks_drained_at_once_agree_with_the_oracle(ranks):
    assert_agrees(ranks)
    event(f"several: {ranks.num_ranks > 1}")


@settings(max_examples=100, deadline=None)
@given(ranked(), st.data())
def test_stops_aborts_and_cuts_of_ranks_agree_with_the_oracle(ranks, data):
    planned = data.draw(disturbances(len(ranks.requests)))
    seqs = ranks.oracle().run(ranks.requests, planned.aborts, planned.cuts)
    engine, submitted = ranks.engine()
    disturb(engine, submitted, planned)
    assert_same(submitted, seqs)


@settings(max_examples=50, deadline=None)
@given(ranked())
def test_stepping_ranks_by_events_gives_the_same_floats_as_draining_them_at_once(ranks):
    (engine, _), (stepping, _) = ranks.engine(), ranks.engine()
    at_once = [(request.id, request.finished_ts) for request in engine.advance_to(inf)]
    stepped = []
    while (ts := stepping.next_event_ts()) < inf:
        stepped += [(request.id, request.finished_ts) for request in stepping.advance_to(ts)]
    assert stepped == at_once
