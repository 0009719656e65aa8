"""The tiny pool's questions as a workload, recruited by the skills that the pool was measured to have."""

from pathlib import Path

from experiments.tiny_pool.questions import Part, TinyQuestion, as_question, draw_questions
from experiments.tiny_pool.tokenizer import encode, encode_chat
from mosaic.core.checks import require, require_count, require_name
from mosaic.core.workload import PROPOSE, Call, CallKey, Question, Workload
from mosaic.pipelines.prompts import expert_prompt
from mosaic.workloads.routing import Router, SkillProfiles, load_skill_profiles

ROOT = Path(__file__).resolve().parents[2]
PARTS = (Part.TEST.value, Part.CALIBRATION.value)
"""No expert was trained on questions of either."""


def tiny_workload(
    *,
    name: str,
    profiles: str | Path,
    num_questions: int = 600,
    num_slots_per_question: int = 3,
    part: str = "test",
    seed: int = 0,
) -> Workload:
    """Draw questions and recruit experts for them.

    Parameters
    ----------
    name
        Of the workload.
    profiles
        The pool's skill profiles, as ``experiments/make_pool.py`` measured and wrote them: a path from the folder of
        the call, or from the project's.
    num_questions
        Of the three skills in turn; a longer draw begins with the shorter one's questions.
    num_slots_per_question
        Experts recruited for a question.
    part
        ``test``, or ``calibration``: questions on other operands.
    seed
        Of questions and recruiting.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """
    require_name(name, "workload.name")
    require_count(num_questions, "workload.num_questions", at_least=1)
    require_count(num_slots_per_question, "workload.num_slots_per_question", at_least=1)
    require_count(seed, "workload.seed")
    require(part in PARTS, "workload.part", f"one of {list(PARTS)}", part)
    router = Router(profiles=_measured(profiles), num_slots=num_slots_per_question)
    drawn = draw_questions(num_questions, Part(part), seed)
    questions = tuple(counted(question, f"{part}-{seed}-{i}") for i, question in enumerate(drawn))
    calls = tuple(
        Call(CallKey(question.id, PROPOSE, slot), expert, len(encode_chat(expert_prompt(question))))
        for question, experts in zip(questions, router.recruit_batch(questions, seed=seed), strict=True)
        for slot, expert in enumerate(experts)
    )
    return Workload(name=name, questions=questions, calls=calls)


def counted(question: TinyQuestion, id: str = "tiny") -> Question:
    """Turn a tiny question into an item of a workload, its tokens counted."""
    return as_question(question, id=id, prompt_tokens=len(encode(question.text)))


def _measured(profiles: str | Path) -> SkillProfiles:
    if not isinstance(profiles, str | Path):
        raise TypeError(f"workload.profiles must be the path of a pool's skill profiles, got {profiles!r}")
    places = (Path(profiles), ROOT / profiles)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"workload.profiles must be a pool's skill profiles, got {str(profiles)!r}, where there is no file: "
            "python experiments/make_pool.py makes the pool (once, in a few minutes)"
        )
    return load_skill_profiles(found)
