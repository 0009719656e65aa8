"""Budgets that are chosen on calibration questions, together with the threshold of a gate calibrated itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.workload import AGGREGATE, PROPOSE, Expert, Workload
from mosaic.pipelines.budgets import Budgets, cut_at
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.gates.budget_choice import Batch, BudgetChoice, Kinds, choose_budgets, path_of, settings_of
from mosaic.pipelines.gates.calibrated import Calibrated, plurality_thresholds
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.gates.calibration_file import load_calibration_answers
from mosaic.pipelines.gates.gate import TAU_TOLERANCE, Ballot, Gate, Majority, Unanimous, Winner, plurality
from mosaic.pipelines.gates.loss_table import Setting, loss_table
from mosaic.pipelines.gates.weighted import Weighted, posterior

BUDGETED_POSTERIORS = (0.999, 0.99, 0.98, 0.95, *(percent / 100 for percent in range(90, 39, -5)))
"""Thresholds that are tried with budgets; fixed before any question is seen."""


class Calibration(NamedTuple):
    """Budgets that were chosen, and on what."""

    choice: BudgetChoice
    path: str
    question_ids: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What budgets and hedge may cost together with the gate, and what they are calibrated on."""

    calibration: str
    accepted_loss_frac: float
    risk_frac: float
    fit_frac: float


def budgeted(
    graph: CallGraph, promised: Promised, kinds: Kinds, experts: Sequence[Expert], workload: Workload, num_places: int
) -> tuple[CallGraph, Calibration]:
    """Choose budgets, together with the threshold of a gate that is calibrated itself.

    Parameters
    ----------
    graph
        Of the paper's pipeline.
    promised
        What they may cost; a calibrated gate's own promise goes before it.
    kinds
        Which of them are asked for.
    experts, workload
        Of the run.
    num_places
        Calls that run at once.

    Raises
    ------
    ValueError
        If the calibration answers cannot be used.
    """
    path = promised.calibration
    questions = load_calibration_answers(path)
    fit, certify = split_calibration(questions, promised.fit_frac)
    rule = f"such that some of {len(questions)} calibration questions choose, and others certify"
    require(len(fit) > 0 and len(certify) > 0, "pipeline.promise.fit_frac", rule, promised.fit_frac)
    _require_observed(questions, path)
    accepted, gate, winner = promised.accepted_loss_frac, graph.gate, winner_of(graph.gate)
    settings_tried = settings_of(thresholds_of(gate, fit), kinds, is_gate_chosen=isinstance(gate, Calibrated))
    batch = Batch(len(workload.questions), num_places)
    choice = choose_budgets(
        loss_table(certify, winner),
        path_of(loss_table(fit, winner), settings_tried, batch, accepted),
        accepted_loss_frac=accepted,
        risk_frac=promised.risk_frac,
    )
    if isinstance(gate, Calibrated):
        gate = gate.at(choice.setting.threshold if choice.setting else None)
    asked = [expert for expert in experts if expert.name in workload.num_calls_by_expert]
    chosen = budgets_at(choice, asked, graph.upper_nodes[0].experts)
    ids = frozenset(question.id for question in questions)
    return replace(graph, gate=gate, budgets=chosen), Calibration(choice, path, ids)


def budgets_at(choice: BudgetChoice, experts: list[Expert], aggregators: tuple[Expert, ...]) -> Budgets:
    """Give the experts the budgets that were chosen."""
    _, propose, aggregate, hedge = choice.setting or Setting(None)
    cuts = {
        node: limits
        for node, tokens, of in ((PROPOSE, propose, experts), (AGGREGATE, aggregate, aggregators))
        if tokens is not None and (limits := cut_at(of, tokens))
    }
    return Budgets(cut_tokens=cuts, hedge_tokens={} if hedge is None else cut_at(experts, hedge))


def promised_by(gate: Calibrated) -> Promised:
    """Tell what a gate promises."""
    return Promised(
        calibration=str(gate.calibration),
        accepted_loss_frac=gate.accepted_loss_frac,
        risk_frac=gate.risk_frac,
        fit_frac=gate.fit_frac,
    )


def winner_of(gate: Gate) -> Callable[[Ballot], Winner]:
    """Give what a gate would answer, and how confident it is."""
    match gate:
        case Calibrated():
            return gate.winner
        case Weighted(reliabilities=learned, num_open_options=num_options):
            return lambda ballot: posterior(ballot, learned, num_options)
        case _:
            return plurality


def thresholds_of(gate: Gate, fit: Sequence[CalibrationQuestion]) -> tuple[float | None, ...]:
    """List the confidences from which on the gate may accept its answer, or the one from which on it does."""
    match gate:
        case Calibrated(confidence="weighted"):
            return (None, *BUDGETED_POSTERIORS)
        case Calibrated():
            return (None, *plurality_thresholds({len(question.ballot.votes) for question in fit}))
        case Weighted(min_posterior=least):
            return (least,)
        case Majority(tau=tau):
            return (tau - TAU_TOLERANCE,)
        case Unanimous():
            return (1.0,)
        case _:
            return (None,)


def _require_observed(questions: tuple[CalibrationQuestion, ...], path: str) -> None:
    lacking = sum(question.observed is None for question in questions)
    if lacking:
        raise ValueError(
            "pipeline.promise.calibration must hold lengths, and answers of the aggregator without each response, "
            f"got {path}, where {lacking} of {len(questions)} questions lack them: make it again, with "
            "pipeline.leave_one_out=true"
        )
