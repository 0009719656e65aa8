"""The tiny pool's workload: what it asks, whom, and in how many tokens."""

from collections import Counter
from pathlib import Path

import pytest

from experiments.tiny_pool.questions import Part, draw_questions
from experiments.tiny_pool.tokenizer import encode, encode_chat
from experiments.tiny_pool.workload import tiny_workload
from mosaic.config.job import simulated_job
from mosaic.core.workload import AnswerKind, Workload
from mosaic.pipelines.prompts import expert_prompt
from mosaic.runtime.job import Job
from sim.site import SimSite
from tests.experiments.tiny_pool.small import SCORES, write_scores


def make_workload(folder: Path, **changes: object) -> Workload:
    return tiny_workload(**{"name": "tiny_mcq", "profiles": write_scores(folder), **changes})  # type: ignore[arg-type]


def make_job(folder: Path, *overrides: str) -> tuple[Job, SimSite]:
    fixed = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "aggregator=dp"]
    return simulated_job([*fixed, f"workload.profiles={write_scores(folder)}", *overrides])


def test_600_questions_make_1800_calls(tmp_path: Path) -> None:
    workload = make_workload(tmp_path)
    assert (len(workload.questions), len(workload.calls)) == (600, 1800)
    assert Counter(question.skills for question in workload.questions) == {
        ("addition",): 200, ("maximum",): 200, ("digit_sum",): 200,
    }  # fmt: skip
    asked = {question.text for question in draw_questions(600, Part.TEST, 0)}
    assert {question.text for question in workload.questions} == asked
    assert {(q.answer_kind, q.num_options) for q in workload.questions} == {(AnswerKind.CHOICE, 4)}


def test_prompt_tokens_are_those_of_the_prompt_in_the_chat_template(tmp_path: Path) -> None:
    workload = make_workload(tmp_path, num_questions=30)
    by_id = {question.id: question for question in workload.questions}
    for call in workload.calls:
        question = by_id[call.key.question]
        assert question.text is not None
        assert question.prompt_tokens == len(encode(question.text))
        assert call.prompt_tokens == len(encode_chat(expert_prompt(question))) > question.prompt_tokens


def test_recruits_follow_the_measured_skills(tmp_path: Path) -> None:
    workload = make_workload(tmp_path)
    skill = {question.id: question.skills[0] for question in workload.questions}
    recruited = Counter((skill[call.key.question], call.expert) for call in workload.calls)
    for name in ("addition", "maximum", "digit_sum"):
        best = max(SCORES, key=lambda expert: SCORES[expert][name])
        worst = min(SCORES, key=lambda expert: SCORES[expert][name])
        assert recruited[name, best] > recruited[name, worst]
    assert recruited["addition", "TinyDart"] + recruited["addition", "TinySwift"] < 60, "they cannot add"


def test_the_seed_decides_and_parts_share_nothing(tmp_path: Path) -> None:
    one = make_workload(tmp_path, num_questions=60)
    assert make_workload(tmp_path, num_questions=60) == one
    assert make_workload(tmp_path, num_questions=60, seed=1).questions != one.questions
    calibration = make_workload(tmp_path, num_questions=60, part="calibration")
    for read in (lambda question: question.id, lambda question: question.text):
        assert not {read(question) for question in one.questions} & {read(q) for q in calibration.questions}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "workload.name must be"),
        ({"num_questions": 0}, "workload.num_questions must be at least 1, got 0"),
        ({"num_slots_per_question": 0}, "workload.num_slots_per_question must be at least 1, got 0"),
        ({"seed": -1}, "workload.seed must be at least 0, got -1"),
        ({"part": "train"}, r"workload.part must be one of \['test', 'calibration'\], got 'train'"),
        ({"profiles": "no/such.json"}, "got 'no/such.json', where there is no file: python experiments/make_pool.py"),
        ({"profiles": 3}, "workload.profiles must be the path of a pool's skill profiles, got 3"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make_workload(tmp_path, **changes)


def test_profiles_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert make_workload(tmp_path, profiles="skill_profiles.json", num_questions=9) == make_workload(
        tmp_path, num_questions=9
    )


def test_the_configured_pool_is_the_one_that_is_made(tmp_path: Path) -> None:
    from experiments.tiny_pool.prompts import CONTEXT_TOKENS, JUDGE, MAX_OUTPUT_TOKENS, SHAPE
    from experiments.tiny_pool.responses import EXPERTS

    job, _ = make_job(tmp_path)
    *experts, judge = job.experts
    assert [(expert.name, expert.family) for expert in experts] == [(made.name, made.family) for made in EXPERTS]
    assert {expert.shape for expert in job.experts} == {SHAPE}
    assert {(expert.max_output_tokens, expert.context_tokens) for expert in experts} == {
        (MAX_OUTPUT_TOKENS, CONTEXT_TOKENS)
    }
    assert (judge.name, judge.temperature) == (JUDGE.name, JUDGE.temperature)
    assert (judge.max_output_tokens, judge.context_tokens) == (JUDGE.max_output_tokens, JUDGE.context_tokens)
    assert {expert.checkpoint for expert in job.experts} == {
        f"checkpoints/tiny/{expert.name}" for expert in job.experts
    }
    assert {expert.temperature for expert in experts} == {0.7}


def test_the_simulator_runs_it(tmp_path: Path) -> None:
    job, site = make_job(tmp_path, "workload.num_questions=12", "scheduler=round_robin")
    assert job.workload.name == "tiny_mcq"
    assert job.cluster.num_workers == 2
    assert [expert.name for node in job.graph.upper_nodes for expert in node.experts] == ["TinyJudge"]
    assert set(site.world.lengths) == set(SCORES)
    outcomes = [site.world.outcome(call, {}) for call in job.workload.calls]
    assert {outcome.answer for outcome in outcomes} <= {"A", "B", "C", "D"}
    by_name = {expert.name: expert for expert in job.experts}
    assert all(
        1 <= outcome.output_tokens <= by_name[call.expert].max_output_tokens
        for call, outcome in zip(job.workload.calls, outcomes, strict=True)
    )
