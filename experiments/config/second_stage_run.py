"""The second stage of a run, wherever its plans are executed, and what its summary and files say."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from experiments.config.execution import AlwaysAggregate, Execution
from experiments.config.stage_wiring import StageSetup
from experiments.config.wiring import Setup
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.calibration_answers import encode_calibration_answers, grade_ballots
from mosaic.pipelines.gates.gate import Never
from mosaic.report.metrics import StageSummary
from mosaic.runtime.second_stage import SecondStage, aggregate

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""


def run_second_stage(
    setup: Setup,
    stage: StageSetup,
    execution: Execution,
    plan: Plan,
    first: RunResult,
    step: Step = lambda name: nullcontext(),
) -> SecondStage:
    """Gate the answers of the first stage and aggregate what is left, in the place that gave these answers."""
    return aggregate(
        setup.workload,
        first,
        gate=stage.gate,
        aggregator=stage.aggregator,
        pool=setup.experts,
        cluster=setup.cluster,
        costs=setup.costs,
        scheduler=setup.scheduler,
        profile=lambda: execution.aggregator_profile(stage, plan),
        backend=execution.aggregator(stage, first),
        compare=stage.compare,
        step=step,
    )


def summarise_stage(stage: StageSetup, second: SecondStage, always: AlwaysAggregate, skip_source: str) -> StageSummary:
    """What summary.json says of the stage."""
    planned = second.planned
    return StageSummary(
        aggregator=stage.aggregator.name,
        aggregator_expert=stage.aggregator.expert.name,
        aggregator_tp_degree=planned.expert.tp_degree if planned else None,
        num_aggregator_calls=len(second.handover.calls),
        num_too_long=second.handover.num_too_long,
        aggregator_costs=planned.plan.costs if planned else None,
        predicted_aggregator_s=planned.plan.predicted_makespan_s if planned else 0.0,
        skip_frac=second.handover.skip_frac,
        skip_frac_source=skip_source,
        accuracy_frac=accuracy_frac(second.answers),
        always_aggregate_s=always.aggregator_s,
        always_aggregate_accuracy_frac=always.accuracy_frac,
        gate_report=stage.gate.report() if isinstance(stage.gate, Calibrated) else None,
    )


def calibration_file(stage: StageSetup, second: SecondStage) -> dict[str, bytes]:
    """Encode the graded answers of a run that skipped nothing, where gold is known: what gates are calibrated on."""
    if not isinstance(stage.gate, Never):
        return {}
    graded = grade_ballots(second.handover.ballots, second.aggregated, stage.compare)
    return {"calibration_answers.parquet": encode_calibration_answers(graded)} if graded else {}
