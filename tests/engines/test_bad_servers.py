"""Forty servers that misbehave, in three runs: what comes of each, and that no other expert suffers."""

from collections import defaultdict
from typing import NamedTuple

import pytest

from mosaic.core.results import RunResult
from mosaic.engines.backend import EngineBackend
from mosaic.engines.endpoint import ENDPOINT_ENGINE, EndpointEngines, EndpointPatience
from mosaic.engines.launcher import Patience
from mosaic.engines.requests import RunContent
from mosaic.pipelines import Never
from mosaic.pipelines.call_graph import mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.questions import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.servers import Servers, plan_of_servers
from tests.engines.bad_servers import ALONE, ENDS, FEW, KINDS, WAITS, BadServer, own_certificate
from tests.engines.contract_backends import launcher_of
from tests.engines.fake_server import serving
from tests.factories import make_cluster, make_expert, make_workload

QUICK = EndpointPatience(
    connect_timeout_s=5, reply_timeout_s=0.7, max_retries=1, first_wait_s=0.05, max_wait_s=0.4, outage_timeout_s=2.5
)
NUM_GOOD, NUM_CALLS = 3, 9
LATER = [kind for kind in KINDS if kind.later is not None]


class Seen(NamedTuple):
    """What became of the calls of an expert."""

    num_finished: int
    causes: list[str]
    """Of those that failed."""


def run(servers: list[BadServer], num_calls: int, folder) -> dict[str, Seen]:
    """Send calls to the experts of some servers."""
    endpoints = tuple(server.endpoint for server in servers)
    experts = [make_expert(name, max_output_tokens=64) for name in dict.fromkeys(one.expert for one in endpoints)]
    workload = make_workload(dict.fromkeys([expert.name for expert in experts], num_calls))
    questions = Questions(workload, mixture_of_agents(None, rule=Never(), compare=comparisons()))
    backend = EngineBackend(
        name="endpoint",
        experts=experts,
        cluster=make_cluster(len(servers)),
        journal=folder / "journal",
        content=RunContent(prompts=lambda call, inputs: f"question {call.key.question}"),
        engines=EndpointEngines(endpoints=endpoints, patience=QUICK, max_in_flight=4),
        launcher=launcher_of(ENDPOINT_ENGINE),
        patience=Patience(servers=QUICK),
    )
    plan = plan_of_servers(questions, {number: one.expert for number, one in enumerate(endpoints)})
    with serving(*servers):
        result = drive(backend, [Servers(questions=questions, plan=plan)], num_workers=len(servers))
    return seen_of(result, num_calls)


def seen_of(result: RunResult, num_calls: int) -> dict[str, Seen]:
    finished, causes = defaultdict(int), defaultdict(list)
    for record in result.calls:
        finished[record.expert] += record.status == "finished"
        if record.status == "failed":
            causes[record.expert].append(record.response.error)
    seen = {name: Seen(finished[name], causes[name]) for name in finished}
    assert {one.num_finished + len(one.causes) for one in seen.values()} == {num_calls}, "every call ends once"
    return seen


@pytest.fixture(scope="module")
def from_the_start(tmp_path_factory):
    """Each is its expert's only server, and never serves; one more expert has a good one."""
    folder = tmp_path_factory.mktemp("start")
    certificate = own_certificate(folder)
    servers = [BadServer(None, "good")]
    for kind in KINDS:
        if not kind.name.startswith("TLS"):
            servers.append(BadServer(kind, kind.name))
        elif certificate is not None:
            servers.append(BadServer(kind, kind.name, context=certificate))
    return run(servers, 3, folder)


@pytest.fixture(scope="module")
def beside_another(tmp_path_factory):
    """Each misbehaves for ever after good calls, and a good server of the same expert is there."""
    servers = [BadServer(kind, kind.name, num_good=NUM_GOOD) for kind in LATER]
    servers += [BadServer(None, kind.name) for kind in LATER]
    return run(servers, NUM_CALLS, tmp_path_factory.mktemp("beside"))


@pytest.fixture(scope="module")
def for_a_while(tmp_path_factory):
    """Each is its expert's only server, and misbehaves for a while after good calls."""
    servers = [BadServer(kind, kind.name, num_good=NUM_GOOD, bad_s=0.3) for kind in LATER]
    return run(servers, NUM_CALLS, tmp_path_factory.mktemp("while"))


def ids(kinds):
    return {"argvalues": kinds, "ids": [kind.name for kind in kinds]}


@pytest.mark.parametrize("kind", **ids(KINDS))
def test_a_server_that_never_serves_ends_its_own_expert_and_is_told_as_what_it_is(kind, from_the_start):
    if kind.name not in from_the_start:
        pytest.skip("no openssl")
    seen = from_the_start[kind.name]
    assert seen.num_finished == 0
    assert all(kind.says in cause for cause in seen.causes), seen.causes
    assert from_the_start["good"] == Seen(3, [])


@pytest.mark.parametrize("kind", **ids(LATER))
def test_calls_of_a_server_that_serves_no_more_go_to_the_other(kind, beside_another):
    seen = beside_another[kind.name]
    assert seen.num_finished >= {ALONE: NUM_GOOD, FEW: NUM_CALLS - 2}.get(kind.later, NUM_CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", **ids(LATER))
def test_a_lone_server_that_has_served_is_waited_for(kind, for_a_while):
    seen = for_a_while[kind.name]
    part = kind.says.partition(";")[0]
    assert all(part in cause for cause in seen.causes), seen.causes
    assert seen.num_finished >= {WAITS: NUM_CALLS, FEW: NUM_CALLS - 4}.get(kind.later, NUM_GOOD)
    if kind.later == ENDS:
        assert seen.causes
