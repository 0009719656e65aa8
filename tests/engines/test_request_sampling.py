"""What a request asks of sampling, and its chat, on their way to an engine."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mosaic.core.chat import Chat, Message, Sampling
from mosaic.core.workload import PROPOSE, Call, CallKey, Question
from mosaic.engines.endpoint import Endpoint
from mosaic.engines.endpoint_messages import request_of
from mosaic.engines.prompt_text import plain_text
from mosaic.engines.requests import RunContent, ServedExpert
from mosaic.engines.vllm_engine import VllmEngine
from tests.engines.engine_calls import make_request
from tests.factories import make_expert

CHAT = Chat((Message("system", "Be brief."), Message("user", "Is 7 prime?")))
CALL = Call(CallKey("q", PROPOSE, 0), "A", 10)
SERVED = ServedExpert(expert=make_expert("A"), context_tokens=100, vocab_size=10, decides=("x",))


def spec_of(sampling: Sampling | None, prompt: object = "Is 7 prime?"):
    question = Question(id="q", prompt_tokens=3, text="Is 7 prime?", sampling=sampling)
    content = RunContent(prompts=lambda call, inputs: prompt, questions={"q": question})
    return content.request(CALL, SERVED, {}, None)


def test_without_sampling_of_its_own_a_request_is_as_its_expert_says():
    spec = spec_of(None)
    assert (spec.temperature, spec.max_output_tokens) == (SERVED.expert.temperature, SERVED.expert.max_output_tokens)
    assert spec.sampling is None
    assert spec.fingerprint == spec_of(Sampling()).fingerprint


def test_a_request_s_sampling_goes_before_the_expert_s_but_no_further_than_its_limit():
    spec = spec_of(Sampling(temperature=0.1, max_output_tokens=5, top_p=0.5))
    assert (spec.temperature, spec.max_output_tokens) == (0.1, 5)
    assert spec.sampling is not None
    assert spec.sampling.engine_values == {"top_p": 0.5}
    most = SERVED.expert.max_output_tokens
    assert spec_of(Sampling(max_output_tokens=most + 1)).max_output_tokens == most


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.1),
        Sampling(max_output_tokens=5),
        Sampling(seed=7),
        Sampling(top_p=0.5),
        Sampling(stop=("x",)),
    ],
)
def test_all_of_it_decides_the_response(sampling):
    assert spec_of(sampling).fingerprint != spec_of(None).fingerprint


def test_a_seed_gives_each_slot_a_draw_of_its_own():
    question = Question(id="q", prompt_tokens=3, sampling=Sampling(seed=7))
    content = RunContent(prompts=lambda call, inputs: "x", questions={"q": question})
    seeds = [content.request(Call(CallKey("q", PROPOSE, slot), "A", 10), SERVED, {}, None).seed for slot in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]


def test_another_chat_is_another_request():
    other = Chat((Message("system", "Be long."), Message("user", "Is 7 prime?")))
    assert len({spec_of(None, prompt).fingerprint for prompt in ("Is 7 prime?", CHAT, other)}) == 3


CHAT_REQUEST = make_request(0, prompt=CHAT, temperature=0.5, sampling=Sampling(top_p=0.5, stop=("END",)))


def test_a_server_gets_messages_and_sampling():
    endpoint = Endpoint(base_url="http://localhost/v1", expert="A", model="m")
    body = request_of(CHAT_REQUEST, endpoint).body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 7 prime?"}]
    assert (body["top_p"], body["stop"], body["temperature"]) == (0.5, ["END"], 0.5)
    plain = request_of(CHAT_REQUEST, replace(endpoint, api="completions"))
    assert plain.body["prompt"] == plain_text(CHAT) == "System: Be brief.\n\nUser: Is 7 prime?\n\nAssistant:"


@pytest.mark.slow
def test_vllm_gets_messages_and_sampling():
    pytest.importorskip("vllm")
    engine = VllmEngine.__new__(VllmEngine)
    seen = []
    engine._tokenizer = SimpleNamespace(
        chat_template="t",
        apply_chat_template=lambda messages, **_: seen.append(messages) or "text",
        encode=lambda text, **_: [1, 2],
    )
    engine._expert = "A"
    assert engine._tokens(CHAT_REQUEST) == ([1, 2], False)
    assert seen == [CHAT.as_dicts]
    sampling = engine._sampling(CHAT_REQUEST, 9)
    assert (sampling.top_p, sampling.stop, sampling.temperature, sampling.max_tokens) == (0.5, ["END"], 0.5, 9)


def test_a_template_that_refuses_a_role_fails_the_call_alone():
    engine = VllmEngine.__new__(VllmEngine)

    def refuse(messages, **_):
        raise TypeError("System role not supported")

    engine._tokenizer = SimpleNamespace(chat_template="t", apply_chat_template=refuse)
    engine._expert = "A"
    with pytest.raises(
        ValueError, match=r"messages must be what A's chat template takes \(System role not supported\)"
    ):
        engine._tokens(CHAT_REQUEST)
