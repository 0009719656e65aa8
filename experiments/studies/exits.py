"""Early exits in simulated worlds: what they save, what that costs in accuracy, and whether a promise is kept."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.lab.plots import Panel, draw_rows
from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import beside, markdown, means, wide
from experiments.studies.gate_populations import (
    ADVERSARIAL_WORKLOAD,
    NUM_ADVERSARIAL_OPTIONS,
    Population,
    attracted_experts,
    gather,
    harmful_frac,
    indifferent_aggregator,
)
from experiments.studies.gate_trials import broken_limit, simulate_calibrations
from mosaic.config.job import simulated_job
from mosaic.core.workload import CallKey
from mosaic.pipelines.rules import Calibrated, FasterMoa, Majority, Never, Order, Rule, Scope
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, grade_ballot
from mosaic.pipelines.rules.calibration_file import encode_calibration_answers
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from sim.site import SimSite, draw_records
from sim.world.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADVERSARIAL = "adversarial"
WORLDS = {"MMLU-Pro": "mmlu_pro", "MedMCQA": "medmcqa", "GPQA": "gpqa", ADVERSARIAL: ADVERSARIAL_WORKLOAD}
"""The workload of each."""
TOPOLOGIES = {"flat": ("gate=never",), "tree": ("topology=tree", "exit=never")}
ACCEPTED_FRAC = 0.01
"""What the calibrated exit may lose, of all questions."""
NEVER, AGREEMENT, CALIBRATED, FASTER_MOA = "all answer", "agreement", "calibrated, 1 pp", "Faster-MoA"
RULES: dict[str, Rule] = {
    NEVER: Never(),
    AGREEMENT: Majority(scope=Scope.NODE, order=Order.SLOT),
    FASTER_MOA: FasterMoa(seed=0, order=Order.SLOT),
}
SHOWN = (AGREEMENT, CALIBRATED, FASTER_MOA)

NUM_QUESTIONS = 250
"""Of a seed, to compare rules."""
FIRST_SEED = 1000
"""Rules are compared on other questions than were drawn to calibrate."""
NUM_COMPARED = 500
"""Questions of a drawn seed that set the adversarial world in which rules are compared."""
NUM_DRAWN, DRAWN_SEEDS = 400, range(8)
"""Questions of a seed, and seeds, from which calibrations are drawn."""
NUM_CALIBRATION = 2_000
"""Questions of a calibration."""
NUM_CALIBRATIONS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Questions of a world, and who would answer them."""

    job: Job
    low: World
    """Of the agents of the first layer."""
    high: World
    """Of those that read others."""

    def ask(self, rule: Rule) -> Questions:
        """Let a question's agents answer one after the other, so that all is saved that a rule can save."""
        graph = replace(self.job.graph, rule=rule)
        place = {node.name: number for number, node in enumerate(graph.nodes)}
        questions = Questions(self.job.workload, graph)
        for question in questions:
            _, first, done = questions.of(question.id)
            waiting = {call.key: call for call in first}
            while waiting:
                call = waiting.pop(min(waiting, key=lambda key: (place[key.node], key.slot)))
                (record,) = draw_records(self.high if call.after else self.low, [call], self.job.experts, done)
                questions.note(record)
                waiting |= {call.key: call for call in questions.needed(question.id)}
                for key in questions.cancellable(question.id):
                    waiting.pop(key, None)
        return questions

    def graded(self) -> Iterator[CalibrationQuestion]:
        """Let everybody answer; grade the votes of the first layer, and the last agent."""
        questions = self.ask(Never())
        for question, end in zip(questions, questions.ends(), strict=True):
            same = self.job.graph.compare[question.answer_kind]
            assert same is not None, "benchmarks ask for options"
            if not end.is_too_long:
                yield grade_ballot(end.ballot, end.answer.answer, same)


@cache
def draw_batch(world: str, topology: str, seed: int, num_questions: int, right_frac: float = 0.5) -> Batch:
    """Draw questions of a benchmark, or of the adversarial world, whose upper agents are right so often."""
    part = ("workload.part=calibration", f"workload.num_calibration_questions={num_questions}")
    seeds = (f"seed={seed}", f"question_seed={seed}")
    job, site = simulated_job([f"workload={WORLDS[world]}", *seeds, *part, *TOPOLOGIES[topology]])
    assert isinstance(site, SimSite)
    low = high = replace(site.world, tells_confidence=True)
    if world == ADVERSARIAL:
        low = replace(low, answers=attracted_experts())
        high = replace(high, answers=indifferent_aggregator(right_frac, NUM_ADVERSARIAL_OPTIONS))
    return Batch(job=job, low=low, high=high)


@cache
def find_right_frac(world: str, topology: str, num_questions: int) -> float:
    """Find how often the last agent must be right for skipping what is unanimous to lose just more than is accepted.

    Agents of other worlds do not need it.
    """
    if world != ADVERSARIAL:
        return 0.5
    batches = [draw_batch(ADVERSARIAL, topology, seed, num_questions) for seed in DRAWN_SEEDS]
    questions = (
        (one.ballot, one.majority_correct, batch.high, CallKey(one.id, batch.job.graph.nodes[-1].name, 0))
        for batch in batches
        for one in batch.graded()
    )
    return harmful_frac(questions, ACCEPTED_FRAC)


@cache
def draw_population(world: str, topology: str) -> Population:
    """Draw the questions that calibrations are drawn from."""
    right_frac = find_right_frac(world, topology, NUM_DRAWN)
    batches = (draw_batch(world, topology, seed, NUM_DRAWN, right_frac) for seed in DRAWN_SEEDS)
    name = ADVERSARIAL if world == ADVERSARIAL else WORLDS[world]
    return gather(f"{name} {topology}", WORLDS[world], (one for batch in batches for one in batch.graded()))


@cache
def calibrated_exit(world: str, topology: str) -> Calibrated:
    """Calibrate an exit on questions of a population."""
    population = draw_population(world, topology)
    rng = np.random.default_rng(0)
    drawn = population.kind_of[rng.integers(len(population.kind_of), size=NUM_CALIBRATION)]
    questions = []
    for number, kind in enumerate(drawn):
        one = population.kinds[kind]
        asked = replace(one.ballot.question, id=f"calibration-{number}")
        questions.append(replace(one, ballot=replace(one.ballot, question=asked)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "answers.parquet"
        path.write_bytes(encode_calibration_answers(questions, {"population": population.name}))
        return Calibrated(calibration=path, accepted_loss_frac=ACCEPTED_FRAC, scope=Scope.QUESTION, order=Order.SLOT)


def measure_promise(point: Point, seed: int) -> Row:
    """Calibrate the exit many times, and count the thresholds that lose more than is accepted."""
    topology, world, accepted_frac = (point.labels[name] for name in ("topology", "world", "accepted_loss_frac"))
    population = draw_population(str(world), str(topology))
    (trials,) = simulate_calibrations(population, [float(accepted_frac)], NUM_CALIBRATION, NUM_CALIBRATIONS, seed=seed)
    return {"num_broken": trials.num_broken, "skip_frac": trials.skip_frac}


def measure_rule(point: Point, seed: int) -> Row:
    """Ask questions under a rule."""
    topology, world, rule = (str(point.labels[name]) for name in ("topology", "world", "rule"))
    right_frac = find_right_frac(world, topology, NUM_COMPARED)
    batch = draw_batch(world, topology, FIRST_SEED + seed, NUM_QUESTIONS, right_frac)
    questions = batch.ask(calibrated_exit(world, topology) if rule == CALIBRATED else RULES[rule])
    right = [bool(end.answer.correct) for end in questions.ends()]
    num_calls = sum(len(questions.of(question.id)[2]) for question in questions)
    return {"num_calls": num_calls, "accuracy_frac": float(np.mean(right))}


def compare(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Average what rules save and change, against the same questions with all answers."""
    both = beside(runs, pl.col("rule") == NEVER, ["topology", "world"])
    return means(
        both.filter(pl.col("rule") != NEVER),
        ["topology", "world", "rule"],
        saved=100 * (1 - pl.col("num_calls") / pl.col("num_calls_base")),
        change=100 * (pl.col("accuracy_frac") - pl.col("accuracy_frac_base")),
    )


def report(tables: Tables) -> str:
    """Write the tables of promises and of rules."""
    limit = broken_limit(NUM_CALIBRATIONS)
    promises = tables["promises"].to_dicts()
    num_missed = sum(row["num_broken"] > limit for row in promises)
    promise_table = [
        {
            "topology": row["topology"],
            "world": row["world"],
            "accepted": f"{100 * row['accepted_loss_frac']:g}",
            "broken": f"{row['num_broken']:,}" + (" MISS" if row["num_broken"] > limit else ""),
            "skipped": f"{100 * row['skip_frac']:.1f}",
        }
        for row in promises
    ]
    rows = compare(tables["rules"])
    index = ["topology", "world"]
    return PAGE.format(
        limit=limit,
        verdict=f"MISS: {num_missed} lines are above it" if num_missed else "All lines are within it",
        promises=markdown(promise_table, PROMISE_HEADS),
        saved=markdown(wide(rows, index, "rule", "{saved:.1f}", order=SHOWN)),
        change=markdown(wide(rows, index, "rule", "{change:.1f}", order=SHOWN)),
    )


def figure(tables: Tables, value: str, label: str) -> "Figure":
    """Draw a mean of each rule in each world."""
    rows = [{**row, "name": f"{row['world']}, {row['topology']}", "panel": 0} for row in compare(tables["rules"])]
    names = list(dict.fromkeys(row["name"] for row in rows))
    panels = {0: Panel(label=label, mark=0)}
    return draw_rows(rows, value, "name", "rule", "panel", panels=panels, names=names, marks=SHOWN)


PROMISE_HEADS = {"accepted": "accepted (pp)", "broken": "broken promises", "skipped": "left to the first layer (%)"}
PAGE = f"""\
Simulated worlds. `flat` is the paper's pipeline, an aggregator behind three agents; `tree` is 9-3-1 with a fan-in of
3. Agents of a node answer one after the other: calls saved are the most that a rule can save, and what a question needs
follows from what its agents say (`exit.order=slot`). In the adversarial world agents agree by attraction alone, and
skipping what is unanimous loses just more than the {100 * ACCEPTED_FRAC:g} pp that the calibrated exit may lose.

## Promises of the calibrated exit

`exit=calibrated` is calibrated {NUM_CALIBRATIONS:,} times a line, on {NUM_CALIBRATION:,} questions each. They are drawn
with replacement from simulated questions whose losses are known. A promise is broken where the chosen threshold loses
more than is accepted: at 95% confidence at most {{limit}} times (the 99% limit of the binomial). {{verdict}}.

{{promises}}

## Calls saved (%)

{NUM_QUESTIONS} questions a seed, against the same questions with all answers: means over paired seeds with 95%
intervals. `agreement` accepts what two thirds of the agents that a node reads say. `Faster-MoA` is its published rule,
with similarity 1 for the same answer and 0 for another; an agent's confidence is the probability with which its world's
model gives its answer (ASSUMED).

![calls saved](saved.png)

{{saved}}

## Change of accuracy (pp)

![change of accuracy](change.png)

{{change}}

On real answers, with similarity by embeddings, and with other readings of the published rule:
[faster_moa.md](faster_moa.md).
"""


def make_promises() -> Iterator[Point]:
    """List what is promised in each world."""
    for topology, world in product(TOPOLOGIES, WORLDS):
        for accepted_frac in (ACCEPTED_FRAC,) if world == ADVERSARIAL else (ACCEPTED_FRAC, 0.02, 0.05):
            yield Point(labels={"topology": topology, "world": world, "accepted_loss_frac": accepted_frac})


def make_rules() -> Iterator[Point]:
    """List the rules in each world."""
    for topology, world, rule in product(TOPOLOGIES, WORLDS, (NEVER, *SHOWN)):
        yield Point(labels={"topology": topology, "world": world, "rule": rule})


STUDY = Study(
    name="exits",
    about="What early exits save and cost in simulated worlds, and whether the calibrated one keeps its promise.",
    title="Early exits",
    tables={
        "promises": Sweep(points=tuple(make_promises()), measure=measure_promise),
        "rules": Sweep(points=tuple(make_rules()), measure=measure_rule, num_seeds=8),
    },
    report=report,
    figures={
        "saved": partial(figure, value="saved", label="calls saved (%)"),
        "change": partial(figure, value="change", label="change of accuracy (pp)"),
    },
)
