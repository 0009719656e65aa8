"""What an early exit would have made of answers that agents really gave: a run in which all answered is read again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.results import CallRecord, Response
from mosaic.core.workload import AnswerKind, CallKey, Question
from mosaic.pipelines.exits import Exit, Meeting, Verdict
from mosaic.pipelines.exits.exit import Agent
from mosaic.pipelines.exits.faster_moa import Embed, exit_probability, frobenius_cosine, token_correlation
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.gates.gate import Vote, make_ballot, plurality

Floats: TypeAlias = NDArray[np.float64]
NUM_RESAMPLES = 2_000
SAME = comparisons()[AnswerKind.CHOICE]


class Estimate(NamedTuple):
    """A value with its 95% interval over questions, by bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A question that all of its agents have answered."""

    question: Question
    records: tuple[CallRecord, ...]
    """By slot, with confidence and text."""

    def answer_of(self, places: Sequence[int]) -> str | None:
        """Give what most of some agents answered; ties go to the lowest slot."""
        votes = [Vote(self.records[place].expert, self.records[place].answer) for place in sorted(places)]
        return plurality(make_ballot(self.question, votes, SAME)).answer

    def is_right(self, places: Sequence[int]) -> bool:
        """Tell whether that is the right answer."""
        return self.answer_of(places) == self.question.answer

    def meeting(self) -> Meeting:
        """Let all of them have ended, in the order of their slots."""
        agents = tuple(Agent(record.expert, record.key, True) for record in self.records)
        done = {record.key: record for record in self.records}
        return Meeting(question=self.question, agents=agents, order=tuple(range(len(agents))), done=done, same=SAME)


def read_run(folder: Path) -> list[Heard]:
    """Read the first layer of a run on real vLLM with backend.confidence=true in which everybody answered.

    Raises
    ------
    ValueError
        If a response lacks its confidence.
    """
    import pyarrow.parquet as pq

    gold = {row["question"]: row["gold"] for row in pq.read_table(folder / "answers.parquet").to_pylist()}
    calls = {
        (row["question"], row["slot"]): row
        for row in pq.read_table(folder / "calls.parquet").to_pylist()
        if row["node"] == "propose"
    }
    heard: dict[str, list[CallRecord]] = {}
    for line in (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines():
        said: dict[str, Any] = json.loads(line)
        if said["node"] != "propose":
            continue
        if said.get("confidence") is None:
            raise ValueError(f"{folder}: responses must have a confidence, run with backend.confidence=true")
        call = calls[said["question"], said["slot"]]
        record = CallRecord(
            key=CallKey(said["question"], "propose", said["slot"]),
            expert=said["expert"],
            session=-1,
            workers=(),
            prompt_tokens=call["prompt_tokens"],
            output_tokens=said["output_tokens"],
            queued_ts=0.0,
            admitted_ts=None,
            first_token_ts=None,
            finished_ts=None,
            answer=call["answer"],
            response=Response(said["text"]),
            confidence=said["confidence"],
        )
        heard.setdefault(said["question"], []).append(record)
    return [
        Heard(
            question=Question(
                id=name, prompt_tokens=1, answer=gold[name], answer_kind=AnswerKind.CHOICE, num_options=4
            ),
            records=tuple(sorted(records, key=lambda record: record.key)),
        )
        for name, records in heard.items()
    ]


def signals(heard: Sequence[Heard], embed: Embed) -> dict[str, Floats]:
    """Compute what could speak for an exit after two agents, shape (num_questions,) each."""
    found: dict[str, list[float]] = {}
    for one in heard:
        first, second = one.records[:2]
        confidences = [_confidence(first), _confidence(second)]
        sim = frobenius_cosine(*(token_correlation(embed(_text(record))) for record in (first, second)))
        same = float(first.answer is not None and first.answer == second.answer)
        values = {
            "Q, as printed": exit_probability(confidences, [[], [sim]]),
            "Q without the diagonal": exit_probability(confidences, [[], [sim]], diagonal=False),
            "Q as printed, Sim by answers": exit_probability(confidences, [[], [same]]),
            "FrobCosSim": sim,
            "same answer": same,
            "C": float(np.sqrt(np.mean(np.square(confidences)))),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def auc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Compute the chance that a right exit scores above a wrong one, ties by half; nan without one of either.

    Examples
    --------
    >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True]))
    0.875
    """
    from scipy.stats import rankdata

    num_right = int(labels.sum())
    num_pairs = num_right * (len(labels) - num_right)
    if num_pairs == 0:
        return float("nan")
    return float((rankdata(scores)[labels].sum() - num_right * (num_right + 1) / 2) / num_pairs)


def bootstrap(num_questions: int, statistic: Callable[[NDArray[np.int64]], float], seed: int = 0) -> Estimate:
    """Give a statistic of all questions, with the 2.5% and 97.5% quantiles over resampled ones."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(num_questions, size=num_questions)) for _ in range(NUM_RESAMPLES)]
    low, high = np.nanquantile(values, (0.025, 0.975)).tolist()
    return Estimate(statistic(np.arange(num_questions)), low, high)


def auc_of(scores: Floats, labels: NDArray[np.bool_]) -> Estimate:
    """Compute an AUC with its interval."""
    return bootstrap(len(labels), lambda places: auc(scores[places], labels[places]))


class Replayed(NamedTuple):
    """What a rule makes of a batch, by question; means over the rule's draws."""

    saved_frac: Floats
    """Of the agents, shape (num_questions,)."""
    right_frac: Floats
    """Of the vote of those that were heard."""


def replay(heard: Sequence[Heard], rules: Sequence[Exit | None]) -> Replayed:
    """Apply a rule, given once for each of its seeds; those that were heard vote, None: all."""
    saved, right = np.zeros((2, len(heard)))
    for rule in rules:
        for place, one in enumerate(heard):
            verdict = None if rule is None else rule.judge(one.meeting())
            everybody = tuple(range(len(one.records)))
            num_heard = len(everybody) if verdict is None else _num_heard(rule, one, verdict)
            saved[place] += 1 - num_heard / len(everybody)
            right[place] += one.is_right(range(num_heard))
    return Replayed(saved / len(rules), right / len(rules))


def _num_heard(rule: Exit | None, one: Heard, verdict: Verdict) -> int:
    """Count the agents that had to end before the verdict: those read, or where an answer is accepted fewer did not."""
    assert rule is not None, "it gave the verdict"
    if verdict.decision is None:
        return len(verdict.read)
    whole = one.meeting()
    for number in range(1, len(one.records)):
        agents = tuple(
            agent if place < number else agent._replace(has_ended=False) for place, agent in enumerate(whole.agents)
        )
        partial = Meeting(question=one.question, agents=agents, order=tuple(range(number)), done=whole.done, same=SAME)
        if rule.judge(partial) is not None:
            return number
    return len(one.records)


def _confidence(record: CallRecord) -> float:
    assert record.confidence is not None, "read_run has checked it"
    return record.confidence


def _text(record: CallRecord) -> str:
    assert record.response is not None
    return record.response.text or ""
