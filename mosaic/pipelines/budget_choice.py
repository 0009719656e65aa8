"""Chooses budgets, and a gate's threshold with them, whose joint loss is promised.

NOTE: the idea. Part of the calibration questions, those that certify nothing, lay out a path: of all settings of
threshold and budgets those that no other beats in both safety and speed, the safest first. The other questions walk it,
testing each setting at the full risk, up to the first that fails (fixed-sequence testing, see `risk_control`). The path
does not depend on them, so with probability of at least 1 - risk no setting that passed loses more than is accepted.

References
----------
Laufer-Goldshtein, Fisch, Barzilay and Jaakkola, "Efficiently controlling multiple risks with Pareto testing", ICLR
2023, arXiv 2210.07913.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import require
from mosaic.core.workload import AGGREGATE, PROPOSE, Expert, Workload
from mosaic.pipelines.budgets import Budgets, cut_at
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.loss_table import BudgetSetting, loss_table
from mosaic.pipelines.risk_control import SettingTest, fixed_sequence, smallest_promise_frac
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Promised

LEVELS = tuple(round(2 ** (exponent / 2)) for exponent in range(30, 7, -1))
"""Of tokens, from 32,768 down to 11; fixed before any question is seen."""
AGGREGATE_SHARE = 2
"""An aggregation may write so many times less than a proposal: a chain of the two is bounded."""
HEDGE_SHARES = (1, 2, 4, 8, 16)
"""And so may a call that is hedged, each of them."""
FULL_STEP = 3.0
"""Assumed: a decode step of a full batch takes so many times that of the few sequences that are left at the end."""
LEAST_GAIN_FRAC = 0.02
"""Of the steps: a path with steps smaller than this only offers more chances to fail."""


class Questions(Protocol):
    """Calibration questions, as ``LossTable`` has them."""

    def __len__(self) -> int:
        """Count them."""

    def losses(self, setting: BudgetSetting) -> NDArray[np.int8]:
        """Compute what each loses at most."""

    def written_tokens(self, setting: BudgetSetting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Estimate what each writes in all, and one call after the other."""


class Kinds(NamedTuple):
    """What is budgeted."""

    cuts: bool
    hedges: bool


class Batch(NamedTuple):
    """What decides whether long chains or many tokens take the time."""

    num_questions: int
    num_running: int
    """Calls that run at once at most."""


class Calibration(NamedTuple):
    """Budgets that were chosen, and on what."""

    setting: BudgetSetting | None
    """The last of the path that passed; None: nothing can be promised."""
    tests: tuple[SettingTest[BudgetSetting], ...]
    num_certify: int
    promise_frac: float | None
    """Smallest loss that the questions could have promised for it, or else for the first; None: the path is empty."""
    promised: Promised

    def promise(self) -> Promised:
        """Give the loss that is promised, if it is."""
        return self.promised._replace(is_given=self.setting is not None)

    def notes(self) -> tuple[str, ...]:
        """Say what is promised, or why nothing is."""
        accepted = f"a loss of at most {100 * self.promised.accepted_loss_frac:.4g} pp against always aggregating"
        promise = f"{accepted} at {100 * (1 - self.promised.risk_frac):.4g}% confidence"
        if self.setting is None:
            why = "no budget is expected to earn anything"
            if self.promise_frac is not None:
                could = ceil(1000 * self.promise_frac - 1e-4) / 10  # rounded up, as a promise must be
                why = f"{self.num_certify} questions cannot promise {promise} (they could promise {could:.1f} pp)"
            return (f"budgets: {why}: there are none",)
        threshold, *tokens = self.setting
        named = zip(("proposals", "aggregations", "hedge"), tokens, strict=True)
        parts = [f"{name} {count:,} tokens" for name, count in named if count is not None] or ["none"]
        skips = "nothing is skipped" if threshold is None else f"threshold {threshold:.4g}"
        return (f"budgets: {', '.join(parts)}; {skips}; {self.num_certify} questions promise {promise}",)

    def report(self) -> dict[str, Any]:
        """List the numbers behind the promise, for summary.json."""
        return {
            **(self.setting or BudgetSetting(None))._asdict(),
            "accepted_loss_frac": self.promised.accepted_loss_frac,
            "risk_frac": self.promised.risk_frac,
            "num_certify": self.num_certify,
            "promise_frac": self.promise_frac,
            "tests": [
                {**setting._asdict(), "mean_loss_frac": mean, "p_value": p_value}
                for setting, mean, p_value in self.tests
            ],
        }


def settings_of(thresholds: Sequence[float | None], kinds: Kinds, *, is_gate_chosen: bool) -> tuple[BudgetSetting, ...]:
    """List all settings; those without budgets only where the gate's threshold is to be chosen too."""
    budgets: list[tuple[int | None, ...]] = []
    for level in LEVELS:
        cut = (level, max(1, level // AGGREGATE_SHARE)) if kinds.cuts else (None, None)
        hedges = [max(1, level // share) for share in HEDGE_SHARES] if kinds.cuts else [level]
        budgets += [(*cut, hedge) for hedge in hedges] if kinds.hedges else []
        budgets += [(*cut, None)] if kinds.cuts else []
    without = [BudgetSetting(threshold) for threshold in thresholds if threshold is not None and is_gate_chosen]
    return (*without, *(BudgetSetting(threshold, *tokens) for threshold in thresholds for tokens in budgets))


def path_of(
    fit: Questions, settings: Sequence[BudgetSetting], batch: Batch, accepted_loss_frac: float
) -> tuple[BudgetSetting, ...]:
    """Order settings from safe to fast, without those that are beaten in both.

    Safety is by how many standard errors the mean loss is below the accepted one, one more lost question counted.
    """

    def margin(setting: BudgetSetting) -> float:
        lost, num = fit.losses(setting), len(fit) + 1
        mean, square = (float(lost.sum()) + 1) / num, (float(np.abs(lost).sum()) + 1) / num
        return (accepted_loss_frac - mean) / sqrt(square - mean**2)

    priced = [(-margin(setting), steps(fit, setting, batch), setting) for setting in settings]
    path: list[BudgetSetting] = []
    least = steps(fit, BudgetSetting(None), batch)
    for _, number, setting in sorted(priced, key=lambda one: one[:2]):
        if number < (1 - LEAST_GAIN_FRAC) * least:
            path.append(setting)
            least = number
    return tuple(path)


def choose_budgets(certify: Questions, path: Sequence[BudgetSetting], promised: Promised) -> Calibration:
    """Take the fastest setting of a path that can be promised, on questions that did not lay out the path."""
    risk_frac = promised.risk_frac
    chosen, tests = fixed_sequence(path, certify.losses, promised.accepted_loss_frac, risk_frac)
    named = chosen or (tests[0].setting if tests else None)
    return Calibration(
        setting=chosen,
        tests=tests,
        num_certify=len(certify),
        promise_frac=None if named is None else smallest_promise_frac(certify.losses(named), risk_frac),
        promised=promised,
    )


def steps(table: Questions, setting: BudgetSetting, batch: Batch) -> float:
    """Estimate the decode steps of a batch: those of engines that are full, and those of its longest chain."""
    written, chain = table.written_tokens(setting)
    longest = float(np.quantile(chain, 1 - 1 / batch.num_questions))
    return FULL_STEP * batch.num_questions * float(written.mean()) / batch.num_running + longest


def budgeted(
    graph: CallGraph, promised: Promised, kinds: Kinds, experts: Sequence[Expert], workload: Workload, num_running: int
) -> tuple[CallGraph, Calibration]:
    """Choose budgets, together with the threshold of a gate that is calibrated itself.

    Parameters
    ----------
    graph
        Of the paper's pipeline.
    promised
        What they may cost.
    kinds
        Which of them are asked for.
    experts, workload
        Of the run.
    num_running
        Calls that run at once.

    Raises
    ------
    ValueError
        If the calibration answers cannot be used.
    """
    questions = load_calibration_answers(promised.calibration, "pipeline.promise.calibration")
    fit, certify = split_calibration(questions, promised.fit_frac)
    rule = f"such that some of {len(questions)} calibration questions choose, and others certify"
    require(len(fit) > 0 and len(certify) > 0, "pipeline.promise.fit_frac", rule, promised.fit_frac)
    _require_observed(questions, promised.calibration)
    thresholds = graph.rule.thresholds({len(question.ballot.votes) for question in fit})
    tried = settings_of(thresholds, kinds, is_gate_chosen=graph.rule.promise() is not None)
    path = path_of(
        loss_table(fit, graph.rule.winner), tried, Batch(len(workload.questions), num_running),
        promised.accepted_loss_frac,
    )  # fmt: skip
    promised = promised._replace(question_ids=frozenset(question.id for question in questions))
    calibration = choose_budgets(loss_table(certify, graph.rule.winner), path, promised)
    setting = calibration.setting or BudgetSetting(None)
    asked = [expert for expert in experts if expert.name in workload.num_calls_by_expert]
    budgets = budgets_at(setting, asked, graph.upper_nodes[0].experts)
    return replace(graph, rule=graph.rule.at(setting.threshold), budgets=budgets), calibration


def budgets_at(setting: BudgetSetting, experts: Sequence[Expert], aggregators: Sequence[Expert]) -> Budgets:
    """Give the experts the budgets of a setting."""
    _, propose, aggregate, hedge = setting
    cuts = {
        node: limits
        for node, tokens, of in ((PROPOSE, propose, experts), (AGGREGATE, aggregate, aggregators))
        if tokens is not None and (limits := cut_at(of, tokens))
    }
    return Budgets(cut_tokens=cuts, hedge_tokens={} if hedge is None else cut_at(experts, hedge))


def _require_observed(questions: Sequence[CalibrationQuestion], path: str) -> None:
    lacking = sum(question.observed is None for question in questions)
    if lacking:
        raise ValueError(
            "pipeline.promise.calibration must hold lengths, and answers of the aggregator without each response, "
            f"got {path}, where {lacking} of {len(questions)} questions lack them: make it again, with "
            "pipeline.leave_one_out=true"
        )
