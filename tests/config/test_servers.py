"""Models on servers: what a command line or a LiteLLM file names, and what the servers say of it."""

from contextlib import closing
from pathlib import Path

import pytest
import yaml

from mosaic.config.batch import BatchRequest, batch_config
from mosaic.config.litellm import deployments_of_litellm, litellm_entries
from mosaic.config.servers import Deployment, deployments_of_servers
from mosaic.core.errors import BackendError
from mosaic.core.spending import TokenPrice
from mosaic.core.workload import Expert
from tests.engines.fake_server import FakeServer
from tests.readme_blocks import ROOT, blocks_of


def serving(*models: dict[str, object], **options: object) -> "closing[FakeServer]":
    server = FakeServer("-", **options)
    server.models = {"data": list(models)}
    return closing(server)


A, B = {"id": "a", "owned_by": "vllm", "max_model_len": 4096}, {"id": "b"}


def url(server: FakeServer) -> str:
    return server.endpoint.base_url


def test_names_are_looked_up_at_every_server_and_contexts_are_vllm_s() -> None:
    with serving(A, B) as one, serving(A) as two:
        found = deployments_of_servers([f"{url(one)},{url(two)}"], "b,a", None, None)
        named = [(each.expert, each.base_url, each.context_tokens, each.is_vllm) for each in found]
        assert named == [("b", url(one), None, False), ("a", url(one), 4096, True), ("a", url(two), 4096, True)]


def test_without_names_all_that_is_listed_is_taken_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(A, B) as one:
        assert [each.expert for each in deployments_of_servers([url(one)], None, None, None)] == ["a", "b"]
        assert capsys.readouterr().err == f"models: a, b (all that {url(one)} lists; --models names some)\n"
    message = "--models must be given where servers list more than 10 models"
    with serving(*({"id": f"m{number}"} for number in range(11))) as many, pytest.raises(ValueError, match=message):
        deployments_of_servers([url(many)], None, None, None)


def test_a_name_that_no_server_has_is_refused_with_those_that_they_have() -> None:
    with serving(A, B) as one:
        with pytest.raises(ValueError, match=r"--models must be names that .* serves, \['a', 'b'\], got 'c'"):
            deployments_of_servers([url(one)], "a,c", None, None)
        with pytest.raises(ValueError, match="got 'judge'"):
            deployments_of_servers([url(one)], "a", None, "judge")


def test_a_server_without_a_list_is_believed_and_one_that_is_away_is_not() -> None:
    with serving() as one:
        one.models = (404, {"detail": "Not Found"})
        (found,) = deployments_of_servers([url(one)], "x", None, None)
        assert (found.model, found.context_tokens, found.is_vllm) == ("x", None, False)
        with pytest.raises(ValueError, match="lists no models"):
            deployments_of_servers([url(one)], None, None, None)
    with pytest.raises(BackendError, match="cannot be reached: Connection refused; is the server running"):
        deployments_of_servers([url(one)], "x", None, None)


def test_a_key_goes_to_https_servers_by_default_and_to_others_where_it_is_named(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123456789012")
    with serving(A) as one:
        assert deployments_of_servers([url(one)], "a", None, None)[0].api_key_env is None
        assert deployments_of_servers([url(one)], "a", "OPENAI_API_KEY", None)[0].api_key_env == "OPENAI_API_KEY"
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(BackendError, match="environment variable OPENAI_API_KEY must hold its API key"):
            deployments_of_servers([url(one)], "a", "OPENAI_API_KEY", None)


def entries_of(folder: Path, *entries: dict[str, object]) -> tuple[Path, list]:
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump({"model_list": list(entries)}))
    return path, litellm_entries(path)


def entry(name: str, server: FakeServer, **more: object) -> dict[str, object]:
    info = more.pop("model_info", {})
    parameters = {"model": f"openai/{name}", "api_base": url(server), **more}
    return {"model_name": name, "litellm_params": parameters, "model_info": info}


def test_a_litellm_file_gives_servers_limits_prices_and_sampling(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-123456789012")
    with serving(A, B) as one, serving(A) as two:
        more = {"rpm": 60, "tpm": 9000, "api_key": "os.environ/MY_KEY", "max_tokens": 300, "temperature": 0.2}
        costs = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7}
        path, entries = entries_of(
            tmp_path, entry("a", one, **more, **costs), entry("a", two, max_tokens=300, temperature=0.2),
            entry("b", one, model_info=costs),
        )  # fmt: skip
        found = deployments_of_litellm(entries, str(path))
        price = TokenPrice(input_dollars_per_mtok=0.15, output_dollars_per_mtok=0.6)
        assert found[0] == Deployment(
            expert="a", base_url=url(one), model="a", api_key_env="MY_KEY", is_vllm=True, context_tokens=4096,
            max_requests_per_min=60, max_tokens_per_min=9000, price=price, max_output_tokens=300, temperature=0.2,
        )  # fmt: skip
        assert [(each.expert, each.base_url, each.price) for each in found[1:]] == [
            ("a", url(two), None),
            ("b", url(one), price),
        ]


def test_the_litellm_file_of_the_page_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs" / "how-to" / "api.md") if block.language == "yaml")
    (tmp_path / "litellm.yaml").write_text(block.text)
    monkeypatch.setattr("mosaic.config.litellm.list_models", lambda *_: None)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    small, large = deployments_of_litellm(litellm_entries(tmp_path / "litellm.yaml"), "litellm.yaml")
    assert (small.expert, small.model, small.api_key_env) == ("small", "gpt-4.1-nano", "OPENAI_API_KEY")
    assert small.price == TokenPrice(input_dollars_per_mtok=0.1, output_dollars_per_mtok=0.4)
    assert (large.expert, large.base_url) == ("large", "http://gpu-box:8000/v1")


def test_a_litellm_file_as_people_write_it(tmp_path: Path, monkeypatch) -> None:
    with serving(A, B) as one:
        monkeypatch.setenv("MY_BASE", url(one))
        path = tmp_path / "litellm.yaml"
        path.write_text(
            "model_list: [{model_name: a, litellm_params: {model: openai/a, api_base: os.environ/MY_BASE, "
            "max_completion_tokens: 500, input_cost_per_token: 1e-7, output_cost_per_token: 0.0000004}}]"
        )
        (found,) = deployments_of_litellm(litellm_entries(path), str(path))
        assert (found.base_url, found.max_output_tokens) == (url(one), 500)
        assert found.as_endpoint()["limit_key"] == "max_completion_tokens"
        assert found.price == TokenPrice(input_dollars_per_mtok=0.1, output_dollars_per_mtok=0.4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"api_base": "os.environ/NOT_THERE"}, "api_base must be the URL in environment variable NOT_THERE, which is"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens must be left out beside max_completion_tokens"),
        ({"api_key": "sk-verysecret"}, "api_key must be os.environ/NAME, and the key in the environment variable"),
        ({"input_cost_per_token": 1e-7}, "output_cost_per_token must be dollars for a token, for both"),
        ({"model": "openai/c"}, r"model must be one that .* serves, \['a', 'b'\], got 'c'"),
        ({"api_base": None}, "api_base must be given in every entry of the file, or in none"),
    ],
)
def test_a_slip_in_a_litellm_file_is_named(more: dict[str, object], message: str, tmp_path: Path) -> None:
    with serving(A, B) as one:
        path, entries = entries_of(tmp_path, entry("b", one), entry("a", one, **more))
        with pytest.raises(ValueError, match=message) as caught:
            deployments_of_litellm(entries, str(path))
        assert "sk-verysecret" not in str(caught.value)
        assert f"{path}, a: " in str(caught.value)


def test_servers_of_a_name_must_have_one_model(tmp_path: Path) -> None:
    with serving(A, B) as one:
        other = entry("a", one)
        other["litellm_params"]["model"] = "openai/b"
        path, entries = entries_of(tmp_path, entry("a", one), other)
        with pytest.raises(ValueError, match="a: model must be the same at all its servers"):
            deployments_of_litellm(entries, str(path))


def config_of(folder: Path, *servers: FakeServer, **more: object) -> dict:
    path = folder / "q.jsonl"
    path.write_text('{"question": "Is it?"}\n')
    return batch_config(BatchRequest(path=path, servers=tuple(map(url, servers)), **more))


def test_experts_on_servers_have_no_shape_and_no_hardware_is_asked_for(tmp_path: Path) -> None:
    with serving(A, B) as one:
        config = config_of(tmp_path, one, models="a,b")
        assert config["backend"]["name"] == "endpoint"
        shapes = {name: (each["shape"], each["context_tokens"]) for name, each in config["pool"]["experts"].items()}
        assert shapes == {"a": (None, 4096), "b": (None, None)}
        limits = {name: each["max_output_tokens"] for name, each in config["pool"]["experts"].items()}
        assert limits == {"a": 2048, "b": 4096}
        for override in ("hardware=a100_80gb", "cluster=a100x4", "backend=vllm", "pool=demo"):
            with pytest.raises(ValueError, match="must be left out where servers have the models"):
                config_of(tmp_path, one, models="a", overrides=(override,))


@pytest.mark.parametrize(
    ("models", "aggregator", "merges", "answer"),
    [
        ("a,b", None, "a", ["a", "b"]),
        ("a", None, None, ["a"]),
        ("a,b", "none", None, ["a", "b"]),
        ("a,b", "b", "b", ["a", "b"]),
        ("b", "a", "a", ["b"]),
        (None, "b", "b", ["a", "b"]),
    ],
)
def test_the_first_model_merges_and_an_aggregator_that_is_named_alone_does_not_answer(
    models: str | None, aggregator: str | None, merges: str | None, answer: list[str], tmp_path: Path
) -> None:
    with serving(A, B) as one:
        config = config_of(tmp_path, one, models=models, aggregator=aggregator)
        assert config["pool"]["aggregator"] == merges
        assert config["aggregator"]["name"] == ("none" if merges is None else "dp")
        assert config["workload"]["experts"] == answer


def test_what_needs_a_shape_says_so() -> None:
    expert = Expert(name="a", checkpoint="a", shape=None, family="instruct", context_tokens=None)
    with pytest.raises(ValueError, match="expert a: shape must be given where it is loaded, simulated or planned"):
        _ = expert.known_shape
    assert expert.output_limit(10**9) == 4096
