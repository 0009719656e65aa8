"""A batch of ten questions on two servers: requests are counted and priced, a cap stops it, and it goes on."""

import json
import shlex
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from mosaic.report.batch_output import NOT_SENT
from tests.commands.command_line import Outcome
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch
from tests.engines.fake_server import FakeServer, completion
from tests.readme_blocks import ROOT, blocks_of, commands_of
from tests.run_tables import bodies_of, summary_of

PRICE = ("--price", "1000/4000")
"""Dollars for a million tokens: a reply of 7 tokens read and 10 written costs 4.7 cents."""


@pytest.fixture
def servers():
    with ExitStack() as opened:
        yield [opened.enter_context(closing(FakeServer(name, model=name))) for name in ("a", "b")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_batch(tmp_path, [batch_line(number, max_tokens=30) for number in range(10)])


def ask(path: Path, servers: list[FakeServer], *options: str, command: str = "batch") -> Outcome:
    urls = [word for server in servers for word in ("--server", server.endpoint.base_url)]
    return run_mosaic(command, path, *urls, "--models", "a,b", *options)


def num_posts(servers: list[FakeServer]) -> int:
    return sum(len(server.posts) for server in servers)


def spending(path: Path) -> dict[str, Any]:
    return summary_of(path.with_suffix(".mosaic"))["spending"]


def most_of_a_prompt(servers: list[FakeServer]) -> int:
    return max(count for server in servers for count in server.prompts().values())


def test_requests_are_counted_and_priced_and_a_batch_that_a_cap_stops_goes_on(
    path: Path, servers: list[FakeServer], tmp_path: Path
) -> None:
    stopped = ask(path, servers, *PRICE, "--max-requests", "15")
    assert stopped.status == 4, stopped.err
    assert num_posts(servers) == 15, "not one more than the cap"
    assert "max_requests=15 is reached" in stopped.err
    assert "requests  15 requests; 105 tokens in" in stopped.out
    assert "calls     15 calls, " in stopped.out
    assert "and the same command with a higher --max-requests goes on" in stopped.out
    answered = [json.loads(line) for line in (tmp_path / "questions.out.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (tmp_path / "questions.errors.jsonl").read_text().splitlines()]
    assert len(answered) >= 3, "a merge is sent before the questions behind it"
    assert len(answered) + len(errors) == 10
    assert {line["error"]["code"] for line in errors} == {NOT_SENT}

    again = ask(path, servers, *PRICE, "--max-requests", "15")
    assert (again.status, num_posts(servers)) == (4, 15), "what was spent before counts"

    done = ask(path, servers, *PRICE, "--max-requests", "100")
    assert done.status == 0, done.err
    assert len(bodies_of(path)) == 10
    assert most_of_a_prompt(servers) == 1, "nothing is sent twice"
    assert sum(each["num_requests"] for each in spending(path).values()) == num_posts(servers)
    for name, server in zip("ab", servers, strict=True):
        each = spending(path)[name]
        replies = [completion(body)["usage"] for _, body, _ in server.posts]
        read, written = (sum(usage[key] for usage in replies) for key in ("prompt_tokens", "completion_tokens"))
        assert (each["num_requests"], each["num_answered"], each["num_retries"]) == (len(replies), len(replies), 0)
        assert (each["prompt_tokens"], each["output_tokens"]) == (read, written)
        assert each["dollars"] == pytest.approx((1000 * read + 4000 * written) / 1e6)
    total = sum(each["dollars"] for each in spending(path).values())
    assert f"cost      ${total:.2f}: " in done.out


def test_a_cap_of_dollars_leaves_room_for_the_most_that_a_request_may_cost(
    path: Path, servers: list[FakeServer]
) -> None:
    stopped = ask(path, servers, *PRICE, "--max-cost", "1")
    assert stopped.status == 4, stopped.err
    assert 0 < sum(each["dollars"] for each in spending(path).values()) <= 1
    assert "max_dollars=1 is reached" in stopped.out
    num_before = num_posts(servers)
    assert 0 < num_before < 20
    assert ask(path, servers, *PRICE, "--max-cost", "10").status == 0
    assert most_of_a_prompt(servers) == 1


def test_retries_count_as_requests_and_a_cap_holds_for_them_too(path: Path, servers: list[FakeServer]) -> None:
    servers[0].behave = lambda body, number: (503, {"detail": "busy"}) if number == 0 else completion(body)
    done = ask(path, servers, "backend.patience.first_wait_s=0.01")
    assert done.status == 0, done.err
    each = spending(path)["a"]
    assert each["num_requests"] == len(servers[0].posts) == 2 * each["num_answered"]
    assert (each["num_retries"], each["dollars"]) == (each["num_answered"], None)
    assert "retried)" in done.out
    for server in servers:
        server.posts.clear()
    capped = ask(
        path,
        servers,
        "backend.patience.first_wait_s=0.01",
        "--work",
        f"{path.parent}/w",
        "--out",
        f"{path.parent}/o",
        "--max-requests",
        "9",
    )
    assert capped.status == 4, capped.err
    assert num_posts(servers) <= 9


def test_a_quote_prices_the_batch_by_its_first_questions_and_the_batch_repeats_none(
    servers: list[FakeServer], tmp_path: Path
) -> None:
    path = write_batch(tmp_path, [batch_line(number, max_tokens=30) for number in range(40)])
    quoted = ask(path, servers, *PRICE, "--rpm", "60", "--json", command="quote")
    assert quoted.status == 0, quoted.err
    quote, num_quoted = json.loads(quoted.out), num_posts(servers)
    assert (quote["num_answered"], quote["spent"]["num_requests"]) == (4, num_quoted)
    assert quote["models"]["b"]["num_requests"] == 40
    assert quote["least_s"] == pytest.approx(quote["models"]["a"]["num_requests"]), "60 requests a minute"
    assert quote["dollars"]["p50"] == pytest.approx(10 * quote["spent"]["dollars"])
    shown = ask(path, servers, *PRICE, command="quote")
    assert "quote for questions: the first 4 of 40 questions are answered" in shown.out
    assert num_posts(servers) == num_quoted, "what is answered is not sent again"

    capped = ask(path, servers, *PRICE, "--pilot", "20", "--max-requests", str(num_quoted + 3), command="quote")
    assert (capped.status, num_posts(servers)) == (0, num_quoted + 3)
    assert f"STOPPED: max_requests={num_quoted + 3} is reached" in capped.out

    assert ask(path, servers, *PRICE).status == 0
    assert most_of_a_prompt(servers) == 1
    cost = sum(each["dollars"] for each in spending(path).values())
    assert cost <= 3 * quote["dollars"]["p90"]


def test_an_audit_names_what_it_sends_and_the_cap_of_its_batch_is_not_its_own(
    path: Path, servers: list[FakeServer]
) -> None:
    # A variable that the process has which starts workers: it may have begun with an earlier test.
    done = ask(path, servers, *PRICE, "--key-env", "HOME", "--max-requests", "30")
    assert done.status == 0, done.err
    num_before, out = num_posts(servers), path.with_name("questions.out.jsonl")
    refused = run_mosaic("audit", out)
    assert (refused.status, num_posts(servers)) == (2, num_before)
    options = [word for server in servers for word in ("--server", server.endpoint.base_url)]
    audited = run_mosaic("audit", out, *options, "--key-env", "HOME")
    assert audited.status == 0, audited.err
    num_sent = num_posts(servers) - num_before
    assert num_sent == 30 - num_before, "a merge for each question that skipped it"
    assert f"audit: {num_sent} requests, $" in audited.err


def test_a_litellm_file_with_servers_limits_and_costs(path: Path, servers: list[FakeServer], tmp_path: Path) -> None:
    entries = [
        {
            "model_name": f"model-{server.endpoint.model}",
            "litellm_params": {"model": f"openai/{server.endpoint.model}", "api_base": server.endpoint.base_url},
            "model_info": {"input_cost_per_token": 1e-3, "output_cost_per_token": 4e-3},
        }
        for server in servers
    ]
    (tmp_path / "litellm.yaml").write_text(yaml.safe_dump({"model_list": entries}))
    done = run_mosaic("batch", path, "--models", tmp_path / "litellm.yaml", "--aggregator", "none")
    assert done.status == 0, done.err
    assert spending(path).keys() == {"model-a", "model-b"}
    assert all(each["dollars"] > 0 for each in spending(path).values())


def only_completion_tokens(body: dict[str, Any], number: int) -> object:
    """Answer as OpenAI's reasoning models do."""
    if "max_tokens" in body:
        text = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return 400, {"error": {"message": text}}
    return completion(body | {"max_tokens": body["max_completion_tokens"]})


def test_a_model_that_wants_max_completion_tokens_says_what_to_write(
    path: Path, servers: list[FakeServer], tmp_path: Path
) -> None:
    server = servers[0]
    server.behave = only_completion_tokens
    refused = run_mosaic("batch", path, "--server", server.endpoint.base_url, "--models", "a")
    assert refused.status == 2
    assert "name 'a' in a LiteLLM file, with max_completion_tokens" in refused.err
    parameters = {"model": "openai/a", "api_base": server.endpoint.base_url, "max_completion_tokens": 30}
    (tmp_path / "litellm.yaml").write_text(
        yaml.safe_dump({"model_list": [{"model_name": "a", "litellm_params": parameters}]})
    )
    done = run_mosaic("batch", path, "--models", tmp_path / "litellm.yaml")
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-cost", "1"), "backend.max_dollars must be null, or the price of every server known: of a, b none is"),
        (("--price", "c=1/2"), "--price must be of one of ['a', 'b'], got 'c'"),
        (("--price", "1/much"), "--price must be MODEL=IN/OUT or IN/OUT, dollars for a million tokens"),
        (("--aggregator", "c"), "--models must be names that"),
        (("--on", "ray"), "--on must be left out where servers have the models"),
    ],
)
def test_slips_are_said_in_a_line(options: tuple[str, ...], said: str, path: Path, servers: list[FakeServer]) -> None:
    outcome = ask(path, servers, *options)
    assert outcome.status == 2
    assert said in outcome.err.splitlines()[-1]
    assert num_posts(servers) == 0
    assert not path.with_suffix(".mosaic").exists()


def test_caps_and_prices_of_tokens_are_of_servers_alone(path: Path, models: list[str]) -> None:
    for options in (("--max-requests", "9"), ("--price", "1/2"), ("--rpm", "5")):
        outcome = run_mosaic("batch", path, *models, *options)
        assert outcome.status == 2
        assert "must be left out where models are loaded here" in outcome.err


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand in docs/how-to/api.md, but for the addresses of its servers; each in a folder of its own."""
    blocks = blocks_of(ROOT / "docs" / "how-to" / "api.md")
    (litellm,) = (block.text for block in blocks if block.language == "yaml")
    commands = [command for block in blocks if block.language == "sh" for command in commands_of(block.text)]
    ours = [command for command in commands if command.startswith("mosaic")]
    assert len(ours) == 4, commands
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    with ExitStack() as opened:
        models = ("gpt-4.1-mini", "gpt-4.1-nano", "Qwen/Qwen2.5-72B-Instruct")
        servers = [opened.enter_context(closing(FakeServer("one", model=model))) for model in models]
        mini, nano, qwen = (server.endpoint.base_url for server in servers)
        for number, command in enumerate(ours):
            folder = tmp_path / str(number)
            folder.mkdir()
            monkeypatch.chdir(folder)
            write_batch(folder, [batch_line(line, max_tokens=30) for line in range(20)])
            Path("litellm.yaml").write_text(
                litellm.replace("https://api.openai.com/v1", nano).replace("http://gpu-box:8000/v1", qwen)
            )
            words = shlex.split(command.replace("\\\n", " ").replace("https://api.openai.com/v1", f"{mini},{nano}"))
            done = run_mosaic(*words[1:])
            assert done.status == 0, f"{command}: {done.err}"
        assert all(server.posts for server in servers)
