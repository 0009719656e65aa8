"""Batches of questions whose calls are cut and hedged, with all that could be known of them."""

from collections.abc import Mapping
from typing import NamedTuple

from hypothesis import strategies as st

from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Inputs, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.loss_table import BudgetSetting
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.ballot import Vote, make_ballot
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, Observed, grade_ballot
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.runtime.stopping import stopping_controllers
from tests.answered_questions import make_moa, make_question
from tests.runtime.planners import batch_of, run_layers

SLOTS = range(3)
GATES = {None: Never(), 1.0: Majority(tau=1), 2 / 3 - 1e-3: Majority()}
"""By threshold."""


class Course(NamedTuple):
    """What every call would write and say, and how the batch is run."""

    setting: BudgetSetting
    votes: Mapping[CallKey, str | None]
    read: Mapping[tuple[str, frozenset[int]], tuple[int, str | None]]
    """What the aggregator writes and says, by the slots that it reads."""
    lengths: Mapping[CallKey, int]
    num_questions: int
    num_workers: int = 2
    has_barrier: bool = True
    has_quorum: bool = False

    @property
    def graph(self) -> CallGraph:
        threshold, propose, aggregate, hedge = self.setting
        cuts = {PROPOSE: dict.fromkeys("ABC", propose or 0), AGGREGATE: {"W": aggregate or 0}}
        named = {node: limits for node, limits in cuts.items() if all(limits.values())}
        budgets = Budgets(cut_tokens=named, hedge_tokens=dict.fromkeys("ABC", hedge) if hedge else {})
        graph = make_moa(GATES[threshold])
        return CallGraph(nodes=graph.nodes, rule=graph.rule, compare=graph.compare, budgets=budgets)

    def outcome(self, call: Call, inputs: Inputs) -> Outcome:
        if not call.after:
            return Outcome(self.lengths[call.key], self.votes[call.key])
        slots = frozenset(key.slot for key in call.after if inputs[key].status is CallStatus.FINISHED)
        return Outcome(*self.read[call.key.question, slots])

    def questions(self) -> list[CalibrationQuestion]:
        """Give what a calibration would know of the batch."""
        found = []
        for name in (f"q{i}" for i in range(self.num_questions)):
            keys = [CallKey(name, PROPOSE, slot) for slot in SLOTS]
            question = make_question(name, answer="A")
            votes = [Vote("ABC"[key.slot], self.votes[key]) for key in keys]
            tokens, answer = self.read[name, frozenset(SLOTS)]
            without = [self.read[name, frozenset(SLOTS) - {slot}] for slot in SLOTS]
            graded = grade_ballot(make_ballot(question, votes, str.__eq__), answer, str.__eq__)
            seen = tuple(
                Observed(self.lengths[key], tokens, said, said == "A", written)
                for key, (written, said) in zip(keys, without, strict=True)
            )
            found.append(CalibrationQuestion(**{
                name: getattr(graded, name) for name in ("ballot", "vote_correct", "aggregator_answer")
            }, aggregator_correct=graded.aggregator_correct, observed=seen))  # fmt: skip
        return found

    def run(self) -> tuple[RunResult, Questions]:
        """Run it on the simulator."""
        graph, batch = self.graph, batch_of(self.num_questions, 3)
        return run_layers(
            graph, batch, self.outcome, recruited="ABC", num_workers=self.num_workers,
            expected=None if self.has_barrier else graph.expected_calls(batch, {}, {AGGREGATE: 300}),
            stops=lambda questions: stopping_controllers(questions, is_cancelling=self.has_quorum),
        )  # fmt: skip


@st.composite
def courses(draw: st.DrawFn) -> Course:
    num_questions = draw(st.integers(1, 5))
    names = [f"q{i}" for i in range(num_questions)]
    keys = [CallKey(name, PROPOSE, slot) for name in names for slot in SLOTS]
    subsets = [frozenset(slot for slot in SLOTS if mask >> slot & 1) for mask in range(8)]
    answers, tokens = st.sampled_from(["A", "A", "B", None]), st.integers(1, 200)
    limits = st.none() | st.integers(1, 200)
    propose, aggregate, hedge = draw(limits), draw(limits), draw(limits)
    setting = BudgetSetting(draw(st.sampled_from(list(GATES))), propose, aggregate, hedge)
    return Course(
        setting,
        {key: draw(answers) for key in keys},
        {(name, slots): (draw(tokens), draw(answers)) for name in names for slots in subsets},
        {key: draw(tokens) for key in keys},
        num_questions,
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
    )
