"""Early exits in simulated worlds: what they spare, what that costs in accuracy, and whether a promise is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from experiments.studies.gate_populations import (
    ADVERSARIAL_WORKLOAD,
    NUM_ADVERSARIAL_OPTIONS,
    Population,
    attracted_experts,
    gather,
    indifferent_aggregator,
)
from mosaic.config.job import simulated
from mosaic.core.realization import uniform_pair
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Question
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.exits import AgreedAtRisk, Exit
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, grade_ballot
from mosaic.pipelines.gates.calibration_file import encode_calibration_answers
from mosaic.pipelines.gates.gate import plurality
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from sim.site import SimSite, draw_records
from sim.world.world import World

BENCHMARKS = ("mmlu_pro", "medmcqa", "gpqa")
ADVERSARIAL = "adversarial"
TOPOLOGIES = {"flat": ["gate=never"], "tree": ["topology=tree", "exit=never"]}
ACCEPTED_FRAC = 0.01
"""What is promised, of all questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Questions of a world, and who would answer them."""

    job: Job
    low: World
    """Of the agents of the first layer."""
    high: World
    """Of those that read others."""

    @property
    def graph(self) -> CallGraph:
        return self.job.graph

    def draw(self, call: Call, done: Mapping[CallKey, CallRecord]) -> CallRecord:
        """Let an agent answer."""
        (record,) = draw_records(self.high if call.after else self.low, [call], self.job.experts, done)
        return record


class Passed(NamedTuple):
    """What became of a question."""

    num_calls: int
    """Asked for, where the agents of a node answer one after the other."""
    num_whole: int
    """Where everybody answers."""
    is_right: bool


def draw_batch(world: str, topology: str, seed: int, num_questions: int, right_frac: float | None = None) -> Batch:
    """Draw questions of a benchmark, or of the adversarial world, whose upper agents are right so often."""
    workload = ADVERSARIAL_WORKLOAD if world == ADVERSARIAL else world
    part = ["workload.part=calibration", f"workload.num_calibration_questions={num_questions}"]
    seeds = [f"seed={seed}", f"question_seed={seed}"]
    job, site = simulated([f"workload={workload}", *seeds, *part, *TOPOLOGIES[topology]])
    assert isinstance(site, SimSite)
    low = high = replace(site.world, tells_confidence=True)
    if world == ADVERSARIAL:
        low = replace(low, answers=attracted_experts())
        high = replace(high, answers=indifferent_aggregator(right_frac or 0.5, NUM_ADVERSARIAL_OPTIONS))
    return Batch(job=job, low=low, high=high)


def go_through(batch: Batch, rule: Exit | None) -> list[Passed]:
    """Ask every question: a node's agents one after the other, so that all is spared that a rule can spare."""
    graph = replace(batch.graph, exit=rule)
    questions = Questions(batch.job.workload, graph)
    return [_pass(batch, graph, question, questions.of(question.id)[1]) for question in questions]


def _pass(batch: Batch, graph: CallGraph, question: Question, first: Sequence[Call]) -> Passed:
    done: dict[CallKey, CallRecord] = {}
    known = {call.key: call for call in first}
    needless: set[CallKey] = set()
    place = {node.name: number for number, node in enumerate(graph.nodes)}
    num_asked = 0
    while True:
        left = [call for key, call in known.items() if key not in done and key not in needless]
        if left:
            call = min(left, key=lambda one: (place[one.key.node], one.key.slot))
            done[call.key] = batch.draw(call, done)
            num_asked += 1
        progress = graph.progress(question, first, done)
        needless |= set(graph.needless(question, first, done))
        known |= {call.key: call for call in progress.submit}
        if not progress.submit and not any(key not in done and key not in needless for key in known):
            end = graph.end(question, first, done, progress)
            num_whole = len(first) + sum(len(node.experts) for node in graph.upper_nodes)
            return Passed(num_asked, num_whole, bool(end.answer.correct))


def graded(batch: Batch) -> Iterator[CalibrationQuestion]:
    """Let everybody answer; grade the votes of the first layer, and the last agent."""
    graph = batch.graph
    questions = Questions(batch.job.workload, graph)
    for question in questions:
        _, first, _ = questions.of(question.id)
        done = {call.key: batch.draw(call, {}) for call in first}
        while calls := graph.progress(question, first, done).submit:
            done |= {call.key: batch.draw(call, done) for call in calls}
        same = graph.compare[question.answer_kind]
        assert same is not None, "benchmarks ask for options"
        end = graph.end(question, first, done)
        if not end.is_too_long:
            yield grade_ballot(end.ballot, end.answer.answer, same)


def draw_population(world: str, topology: str, seeds: Sequence[int], num_questions: int) -> Population:
    """Draw the questions that calibrations are drawn from."""
    right_frac = harmful_frac(topology, seeds, num_questions) if world == ADVERSARIAL else None
    batches = (draw_batch(world, topology, seed, num_questions, right_frac) for seed in seeds)
    workload = ADVERSARIAL_WORKLOAD if world == ADVERSARIAL else world
    return gather(f"{world} {topology}", workload, (one for batch in batches for one in graded(batch)))


def harmful_frac(topology: str, seeds: Sequence[int], num_questions: int) -> float:
    """Find how often the last agent must be right for skipping what is unanimous to lose just more than is accepted.

    As `gate_populations.least_harmful_frac`: an indifferent agent is right where its call's luck is below that share.
    """
    lucks: list[float] = []
    num_right = num_all = 0
    for seed in seeds:
        batch = draw_batch(ADVERSARIAL, topology, seed, num_questions)
        last = batch.graph.nodes[-1].name
        for one in graded(batch):
            num_all += 1
            if plurality(one.ballot).confidence >= 1:
                num_right += one.majority_correct
                key = CallKey(one.id, last, 0)
                lucks.append(uniform_pair(batch.high.root_seed, batch.high.stream, key)[1])
    lucks.sort()
    needed = num_right + floor(ACCEPTED_FRAC * num_all + 1e-9) + 1
    if needed >= len(lucks):
        raise ValueError(f"seeds must give more unanimous questions than {len(lucks)}, of {num_all}")
    return (lucks[needed - 1] + lucks[needed]) / 2


def calibrated_on(population: Population, num_questions: int, seed: int = 0) -> AgreedAtRisk:
    """Calibrate an exit on so many questions of a population."""
    rng = np.random.default_rng(seed)
    drawn = population.kind_of[rng.integers(len(population.kind_of), size=num_questions)]
    questions = []
    for number, kind in enumerate(drawn):
        one = population.kinds[kind]
        asked = replace(one.ballot.question, id=f"calibration-{number}")
        questions.append(replace(one, ballot=replace(one.ballot, question=asked)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "answers.parquet"
        path.write_bytes(encode_calibration_answers(questions, {"population": population.name}))
        return AgreedAtRisk(gate=Calibrated(calibration=path, accepted_loss_frac=ACCEPTED_FRAC))
