"""Chooses token budgets, and a gate's threshold with them, with a promised limit on their joint loss.

NOTE: the idea. Some calibration questions certify nothing and are used to build a path of settings. For each threshold
and each share of an aggregation, budgets are tightened level by level, as long as these questions lose less than
accepted. Among these settings, those that no other setting beats in both safety and speed form the path, the safest
first. The other questions test the path: each setting at the full risk, up to the first that fails (fixed-sequence
testing, see `risk_control`). The path does not depend on these questions. So with probability of at least 1 - risk, no
setting that passed loses more than accepted.

A hedge is tried only if it makes the same budgets faster, since it cannot make them safer. Among many hedges that
change no time, one would look safe by chance.

References
----------
Laufer-Goldshtein, Fisch, Barzilay and Jaakkola, "Efficiently controlling multiple risks with Pareto testing", ICLR
2023, arXiv 2210.07913.
"""

from collections.abc import Iterable, Iterator, Sequence
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
from mosaic.pipelines.risk_control import Bets, SettingTest, fixed_sequence, learned_bet, smallest_promise_frac
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Promised

LEVELS = tuple(round(2 ** (exponent / 4)) for exponent in range(60, 13, -1))
"""Budgets in tokens, from 32,768 down to 11; fixed before any question is seen."""
AGGREGATE_SHARES = (1, 2, 4)
"""Divisors: an aggregation may write this many times fewer tokens than a proposal, which bounds a chain of the two."""
HEDGE_SHARES = (2, 4, 8)
"""Divisors of the same kind, for each hedged call."""
FULL_STEP = 3.0
"""Assumed: a decode step of a full batch takes so many times the step of the few sequences left at the end."""
LEAST_GAIN_FRAC = 0.02
"""Smallest gain between neighbours on the path, as a share of the steps: smaller ones only add chances to fail."""


class Questions(Protocol):
    """Calibration questions, in the form of ``LossTable``."""

    def __len__(self) -> int:
        """Count the questions."""

    def losses(self, setting: BudgetSetting) -> NDArray[np.int8]:
        """Compute the most that each question loses."""

    def written_tokens(self, setting: BudgetSetting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Estimate each question's output tokens: in all, and along its longest chain of calls."""


class Kinds(NamedTuple):
    """The kinds of calls that get a budget."""

    cuts: bool
    hedges: bool


class Batch(NamedTuple):
    """Determines whether long chains or the number of tokens limits the time."""

    num_questions: int
    num_running: int
    """Most calls that run at once."""


class Calibration(NamedTuple):
    """The chosen budgets, and the test that they passed."""

    setting: BudgetSetting | None
    """The last setting of the path that passed; None: nothing can be promised."""
    tests: tuple[SettingTest[BudgetSetting], ...]
    num_certify: int
    promise_frac: float | None
    """Smallest loss that the questions can promise for it, or else for the first; None: the path is empty."""
    promised: Promised
    is_any_safe: bool = True
    """Some setting, fast or not, loses less than accepted on the questions that built the path."""

    def promise(self) -> Promised:
        """Return the promised loss; it is marked if it is not given."""
        return self.promised._replace(is_given=self.setting is not None)

    def notes(self) -> tuple[str, ...]:
        """Report what is promised, or why nothing is."""
        accepted = f"a loss of at most {100 * self.promised.accepted_loss_frac:.4g} pp against always aggregating"
        promise = f"{accepted} at {100 * (1 - self.promised.risk_frac):.4g}% confidence"
        if self.setting is None:
            none = "no setting that loses less is 2% faster" if self.is_any_safe else "every setting loses as much"
            why = f"the questions cannot promise {promise}: {none} on those that lay out the path"
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


def families_of(
    thresholds: Sequence[float | None], kinds: Kinds, *, is_gate_chosen: bool
) -> Iterator[tuple[BudgetSetting, ...]]:
    """List all settings except hedges of budgets, in families in which speed and risk increase.

    Settings without budgets are listed only if the gate's threshold is to be chosen too.
    """
    for threshold in thresholds:
        if is_gate_chosen and threshold is not None:
            yield (BudgetSetting(threshold),)
        if not kinds.cuts:
            yield tuple(BudgetSetting(threshold, hedge_tokens=level) for level in LEVELS)
            continue
        for share in AGGREGATE_SHARES:
            yield tuple(BudgetSetting(threshold, level, max(1, level // share)) for level in LEVELS)


def path_of(
    fit: Questions,
    families: Iterable[Sequence[BudgetSetting]],
    batch: Batch,
    accepted_loss_frac: float,
    *,
    adds_hedges: bool,
) -> tuple[BudgetSetting, ...]:
    """Order settings from safe to fast, without those that another one beats in both.

    ``adds_hedges`` also tries hedges with the budgets of each setting.

    Safety is the number of standard errors by which the mean loss is below the accepted one, with one more lost
    question counted. A setting that is not below it is left out, and so are the riskier ones of its family: they could
    only fail. If there are so few questions that one more lost is too many, settings that lose none of them stay. Then
    slower settings count as safer.
    """

    def safety_of(setting: BudgetSetting, number: float) -> float | None:
        if (margin := _margin(fit, setting, accepted_loss_frac)) > 0:
            return margin
        return -1 / number if fit.losses(setting).sum() <= 0 < accepted_loss_frac else None

    priced: list[tuple[float, float, BudgetSetting]] = []
    for family in families:
        for setting in family:
            number = steps(fit, setting, batch)
            if (safety := safety_of(setting, number)) is None:
                break
            priced.append((-safety, number, setting))
            for hedged in _hedged(setting) if adds_hedges else ():
                faster = steps(fit, hedged, batch)
                if faster >= (1 - LEAST_GAIN_FRAC) * number:
                    continue
                if (safety := safety_of(hedged, faster)) is not None:
                    priced.append((-safety, faster, hedged))
    path: list[BudgetSetting] = []
    least = steps(fit, BudgetSetting(None), batch)
    for _, number, setting in sorted(priced, key=lambda one: one[:2]):
        if number < (1 - LEAST_GAIN_FRAC) * least:
            path.append(setting)
            least = number
    return tuple(path)


def _margin(fit: Questions, setting: BudgetSetting, accepted_loss_frac: float) -> float:
    """Count the standard errors up to the accepted loss, with one more lost question; 0 if it is not below it."""
    lost, num = fit.losses(setting), len(fit) + 1
    mean, square = (float(lost.sum()) + 1) / num, (float(np.abs(lost).sum()) + 1) / num
    return (accepted_loss_frac - mean) / sqrt(square - mean**2) if mean < accepted_loss_frac else 0.0


def is_any_safe(fit: Questions, families: Iterable[Sequence[BudgetSetting]], accepted_loss_frac: float) -> bool:
    """Return whether some setting loses less than accepted; the first of each family is the safest."""
    return any(float(fit.losses(family[0]).mean()) < accepted_loss_frac for family in families)


def _hedged(setting: BudgetSetting) -> Iterator[BudgetSetting]:
    if setting.propose_tokens is not None:
        for share in HEDGE_SHARES:
            yield setting._replace(hedge_tokens=max(1, setting.propose_tokens // share))


def choose_budgets(
    fit: Questions, certify: Questions, path: Sequence[BudgetSetting], promised: Promised
) -> Calibration:
    """Take the fastest setting of a path that can be promised, and compute what the questions could have promised."""
    chosen, tests = certify_path(fit, certify, path, promised)
    named, promise_frac = chosen or (tests[0].setting if tests else None), None
    if named is not None:
        bets = learned_bet(fit.losses(named), len(certify), promised.risk_frac)
        promise_frac = smallest_promise_frac(certify.losses(named), promised.risk_frac, bets)
    return Calibration(
        setting=chosen, tests=tests, num_certify=len(certify), promise_frac=promise_frac, promised=promised
    )


def certify_path(
    fit: Questions, certify: Questions, path: Sequence[BudgetSetting], promised: Promised
) -> tuple[BudgetSetting | None, tuple[SettingTest[BudgetSetting], ...]]:
    """Test a path on other questions than those that built it and chose the stakes."""
    risk_frac = promised.risk_frac

    def bets(setting: BudgetSetting) -> Bets:
        return learned_bet(fit.losses(setting), len(certify), risk_frac)

    return fixed_sequence(path, certify.losses, promised.accepted_loss_frac, risk_frac, bets)


def steps(table: Questions, setting: BudgetSetting, batch: Batch) -> float:
    """Estimate the decode steps of a batch: those of full engines, and those of its longest chain."""
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
        The paper's pipeline.
    promised
        The accepted loss and its calibration.
    kinds
        The kinds of budgets to choose.
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
    graph = replace(graph, rule=graph.rule.learned_without({question.id for question in certify}))
    thresholds = graph.rule.thresholds({len(question.ballot.votes) for question in fit})
    fit_table, certify_table = (loss_table(part, graph.rule.winner) for part in (fit, certify))
    families = tuple(families_of(thresholds, kinds, is_gate_chosen=graph.rule.promise() is not None))
    batch, accepted_loss_frac = Batch(len(workload.questions), num_running), promised.accepted_loss_frac
    path = path_of(fit_table, families, batch, accepted_loss_frac, adds_hedges=kinds.cuts and kinds.hedges)
    promised = promised._replace(question_ids=frozenset(question.id for question in questions))
    calibration = choose_budgets(fit_table, certify_table, path, promised)
    calibration = calibration._replace(is_any_safe=is_any_safe(fit_table, families, accepted_loss_frac))
    setting = calibration.setting or BudgetSetting(None)
    called = [expert for expert in experts if expert.name in workload.num_calls_by_expert]
    budgets = budgets_at(setting, called, graph.upper_nodes[0].experts)
    return replace(graph, rule=graph.rule.at(setting.threshold), budgets=budgets), calibration


def budgets_at(setting: BudgetSetting, experts: Sequence[Expert], aggregators: Sequence[Expert]) -> Budgets:
    """Return the budgets of a setting, by expert."""
    _, propose, aggregate, hedge = setting
    cuts = {
        node: limits
        for node, tokens, of in ((PROPOSE, propose, experts), (AGGREGATE, aggregate, aggregators))
        if tokens is not None and (limits := cut_at(of, tokens))
    }
    return Budgets(cut_tokens=cuts, hedge_tokens={} if hedge is None else cut_at(experts, hedge))


def _require_observed(questions: Sequence[CalibrationQuestion], path: str) -> None:
    lacking = sum(not question.observed for question in questions)
    if lacking:
        raise ValueError(
            "pipeline.promise.calibration must hold lengths, and answers of the aggregator without each response, "
            f"got {path}, where {lacking} of {len(questions)} questions lack them: make it again, with "
            "pipeline.leave_one_out=true"
        )
