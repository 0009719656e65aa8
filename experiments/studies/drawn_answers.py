"""Draws the answers of a simulated world's experts without running them: they do not depend on the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mosaic.config.job import simulated_job
from mosaic.core.results import Inputs
from mosaic.core.workload import Call, Expert
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.walk import walk
from mosaic.runtime.job import Job
from sim.site import SimSite, draw_records
from sim.world.answer_model import AnswerModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAnswers:
    """A batch after the expert stage."""

    job: Job
    site: SimSite
    records: Inputs
    """Of the experts' calls."""
    questions: Questions

    @property
    def aggregator(self) -> Expert:
        """Who merges the answers."""
        return self.job.graph.upper_nodes[0].experts[0]

    def aggregator_calls(self) -> tuple[Call, ...]:
        """List the aggregator's calls for every question that it can read."""
        return self.questions.calls_of(self.job.graph.upper_nodes[0].name, skipping=False)

    def ballots(self) -> tuple[Ballot, ...]:
        """Count the votes on every question."""
        return tuple(walk(self.job.graph, *self.questions.of(question.id)).vote()[0] for question in self.questions)


def draw_answers(overrides: Sequence[str], model: AnswerModel | None = None) -> DrawnAnswers:
    """Draw what the experts of a configuration say, by its own answer model or another one."""
    job, site = simulated_job(overrides)
    if model is not None:
        site = replace(site, world=replace(site.world, answers=model))
    questions = Questions(job.workload, job.graph)
    records = {
        record.key: record for record in draw_records(site.world, questions.first_calls, job.experts, earlier={})
    }
    for record in records.values():
        questions.record(record)
    return DrawnAnswers(job=job, site=site, records=records, questions=questions)
