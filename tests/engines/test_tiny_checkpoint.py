"""A checkpoint of the tiny pool, after a few steps of training, in real vLLM: what was trained is what is served."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, Family
from mosaic.engines.checkpoints import MANIFEST, check_checkpoint
from mosaic.engines.local_launcher import VLLM_ENGINE
from mosaic.pipelines.prompts import expert_prompt
from tests.engines.contract_backends import launcher_of
from tests.engines.executor_runs import Runs, ended_in, has_vllm
from tests.factories import make_plan, make_session

if not has_vllm():
    pytest.skip("vLLM is not installed", allow_module_level=True)

from transformers import AutoTokenizer, LlamaForCausalLM

from experiments.tiny_pool.checkpoint import write_checkpoint
from experiments.tiny_pool.model import generate
from experiments.tiny_pool.prompts import JUDGE, SHAPE, judge_prompt
from experiments.tiny_pool.questions import Part, draw_questions
from experiments.tiny_pool.responses import EXPERTS, write_response
from experiments.tiny_pool.tokenizer import END_ID, decode, encode, encode_chat
from experiments.tiny_pool.training import Training, expert_examples, train
from experiments.tiny_pool.workload import counted
from mosaic.pipelines.aggregation import Response

pytestmark = pytest.mark.slow

NUM_QUESTIONS, MAX_OUTPUT_TOKENS, CONTEXT = 24, 48, 512
QUESTIONS = [counted(question, f"q{i}") for i, question in enumerate(draw_questions(NUM_QUESTIONS, Part.TEST, 0))]
CALLS = [Call(CallKey(q.id, PROPOSE, 0), "TinySage", len(encode_chat(q.text or ""))) for q in QUESTIONS]
PROMPTS = {call.key: expert_prompt(question) for call, question in zip(CALLS, QUESTIONS, strict=True)}


@pytest.fixture(scope="module")
def trained() -> Iterator[LlamaForCausalLM]:
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine a second one makes it slower
    training = Training(num_steps=70, num_opening_steps=70)
    examples = expert_examples(EXPERTS[0], 0)
    yield train(examples, training, context_tokens=CONTEXT, seed=0, report=lambda step, loss: None)
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def checkpoint(trained: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "TinySage"
    write_checkpoint(folder, trained, {"name": "TinySage"})
    return folder


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    expert = Expert(
        name="TinySage", checkpoint=str(checkpoint), shape=SHAPE, family=Family.REASONING, temperature=0.0,
        max_output_tokens=MAX_OUTPUT_TOKENS, context_tokens=CONTEXT,
    )  # fmt: skip
    runs = Runs(
        tmp_path_factory.mktemp("run"),
        launcher_of(VLLM_ENGINE),
        experts=[expert],
        prompts=lambda call, inputs: PROMPTS[call.key],
        questions={question.id: question for question in QUESTIONS},
    )
    result = runs.execute(make_plan(make_session(0, CALLS[:10]), make_session(1, CALLS[10:], workers=(1,))), CALLS)
    return result, {record.key: record.response for record in ended_in(runs.journal)}


def test_vllm_writes_what_the_trained_model_writes(checkpoint: Path, served) -> None:
    result, responses = served
    prompts = [encode_chat(PROMPTS[call.key]) for call in CALLS]
    expected = generate(LlamaForCausalLM.from_pretrained(checkpoint), prompts, max_output_tokens=MAX_OUTPUT_TOKENS)
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}
    assert {record.key: record.prompt_tokens for record in result.calls} == {
        call.key: len(prompt) for call, prompt in zip(CALLS, prompts, strict=True)
    }
    for call, output in zip(CALLS, expected, strict=True):
        written = list(responses[call.key].token_ids)
        assert written == ([*output, END_ID] if len(output) < MAX_OUTPUT_TOKENS else output)
        assert responses[call.key].text == decode(output)
    assert len({tuple(output) for output in expected}) > NUM_QUESTIONS / 2, "responses must differ to prove anything"


def test_a_checkpoint_is_what_was_trained_and_has_checksums(trained: LlamaForCausalLM, checkpoint: Path) -> None:
    import torch

    assert (checkpoint / MANIFEST).is_file()
    checked = check_checkpoint(checkpoint)
    assert (checked.context_tokens, checked.vocab_size, checked.head_dim) == (CONTEXT, SHAPE.vocab_size, 32)
    assert SHAPE.kv_bytes_per_token() == checked.kv_values_per_token * 4
    read = LlamaForCausalLM.from_pretrained(checkpoint)
    assert sum(parameter.numel() for parameter in trained.parameters()) == SHAPE.num_parameters
    assert all(torch.equal(one, read.state_dict()[name]) for name, one in trained.state_dict().items())


def test_the_saved_tokenizer_and_its_template_agree_with_what_was_trained(checkpoint: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(checkpoint)
    for question in draw_questions(60, Part.TEST, 1):
        heard = [Response("E", 9, write_response(expert, question, Random(0))) for expert in EXPERTS[2:]]
        prompt = judge_prompt(counted(question), heard)
        chat = loaded.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        assert list(chat["input_ids"]) == encode_chat(prompt)
        assert len(chat["input_ids"]) + JUDGE.max_output_tokens <= JUDGE.context_tokens
        for expert in EXPERTS:
            text = write_response(expert, question, Random(0))
            assert loaded.encode(text) == encode(text)
            assert loaded.decode([*encode(text), END_ID], skip_special_tokens=True) == text
