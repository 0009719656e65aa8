"""Budgets of a pipeline, from ``pipeline.budgets``, ``pipeline.hedge`` and what they are calibrated on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mosaic.config.checks import require_keys
from mosaic.core.checks import require, require_number
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
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

CALIBRATED = "calibrated"
BUDGETED_POSTERIORS = (0.999, 0.99, 0.98, 0.95, *(percent / 100 for percent in range(90, 39, -5)))
"""Thresholds that are tried with budgets; fixed before any question is seen."""
PROMISE_KEYS = ("calibration", "accepted_loss_frac", "risk_frac", "fit_frac")


class Calibration(NamedTuple):
    """Budgets that were chosen, and on what."""

    choice: BudgetChoice
    path: str
    question_ids: frozenset[str]


def budgeted(
    graph: CallGraph,
    settings: Mapping[str, Any],
    experts: tuple[Expert, ...],
    workload: Workload,
    cluster: Cluster,
    options: EngineOptions,
) -> tuple[CallGraph, Calibration | None]:
    """Choose the budgets that are asked for, together with the threshold of a gate that is calibrated itself.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    kinds = Kinds(cuts=_is_asked(settings, "budgets"), hedges=_is_asked(settings, "hedge"))
    if not any(kinds):
        return graph, None
    name = "pipeline.budgets" if kinds.cuts else "pipeline.hedge"
    rule = "null where nothing is aggregated, or pipeline.nodes names the nodes"
    require([node.name for node in graph.nodes] == [PROPOSE, AGGREGATE], name, rule, CALIBRATED)
    promise = promise_of(graph.gate, settings)
    path = str(promise["calibration"])
    questions = load_calibration_answers(path)
    fit, certify = split_calibration(questions, promise["fit_frac"])
    rule = f"such that some of {len(questions)} calibration questions choose, and others certify"
    require(len(fit) > 0 and len(certify) > 0, "pipeline.promise.fit_frac", rule, promise["fit_frac"])
    _require_observed(questions, path)
    accepted, gate, winner = promise["accepted_loss_frac"], graph.gate, winner_of(graph.gate)
    settings_tried = settings_of(thresholds_of(gate, fit), kinds, is_gate_chosen=isinstance(gate, Calibrated))
    batch = Batch(len(workload.questions), cluster.num_workers * options.max_num_seqs)
    choice = choose_budgets(
        loss_table(certify, winner),
        path_of(loss_table(fit, winner), settings_tried, batch, accepted),
        accepted_loss_frac=accepted,
        risk_frac=promise["risk_frac"],
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


def promise_of(gate: Gate, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tell what is promised and on which questions: what the gate promises, where it promises anything."""
    if isinstance(gate, Calibrated):
        return {key: getattr(gate, key) for key in PROMISE_KEYS}
    promise = settings.get("promise")
    if not isinstance(promise, Mapping):
        raise TypeError(f"pipeline.promise must be a group with keys {list(PROMISE_KEYS)}, got {promise!r}")
    require_keys(promise, PROMISE_KEYS, "pipeline.promise.")
    if promise.get("calibration") is None:
        raise ValueError(
            "pipeline.promise.calibration must name calibration answers where budgets are asked for, got None: they "
            "are chosen on other questions than the batch's. Of a published workload this command makes some, with "
            "workload.part=calibration gate=never pipeline.leave_one_out=true"
        )
    for key in ("accepted_loss_frac", "risk_frac", "fit_frac"):
        require_number(promise[key], f"pipeline.promise.{key}", at_least=0)
        require(promise[key] < 1, f"pipeline.promise.{key}", "below 1", promise[key])
    require(promise["risk_frac"] > 0, "pipeline.promise.risk_frac", "above 0", promise["risk_frac"])
    return promise


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


def _is_asked(settings: Mapping[str, Any], key: str) -> bool:
    value = settings.get(key)
    require(value in (None, CALIBRATED), f"pipeline.{key}", f"null or {CALIBRATED}", value)
    return value is not None


def _require_observed(questions: tuple[CalibrationQuestion, ...], path: str) -> None:
    lacking = sum(question.observed is None for question in questions)
    if lacking:
        raise ValueError(
            "pipeline.promise.calibration must hold lengths, and answers of the aggregator without each response, "
            f"got {path}, where {lacking} of {len(questions)} questions lack them: make it again, with "
            "pipeline.leave_one_out=true"
        )
