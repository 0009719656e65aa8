"""What a batch's metrics say, and who may read them."""

import urllib.error
import urllib.request

import pytest

from mosaic.core.plan import Expected
from mosaic.core.results import CallStatus
from mosaic.core.spending import Cost, Spent
from mosaic.report.prometheus import RunMetrics, serving
from mosaic.report.run_status import RunStatus
from tests.report.sent_events import Clock, Run

FIRST = {
    'mosaic:phase{phase="starting"}': "1",
    "mosaic:questions": "20",
    "mosaic:questions_done": "0",
    "mosaic:calls": "0",
    "mosaic:calls_done": "0",
    "mosaic:calls_in_flight": "0",
    "mosaic:seconds_left": "NaN",
    "mosaic:lost_workers": "0",
}


def read(host: str, port: int | None) -> str:
    text: bytes = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read()
    return text.decode()


def samples(metrics: RunMetrics) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in metrics.text().splitlines() if not line.startswith("#"))


def test_there_are_samples_before_anything_runs_and_every_name_is_explained() -> None:
    metrics = RunMetrics(20)
    assert samples(metrics) == FIRST
    text = metrics.text()
    described = [
        [line.split()[2] for line in text.splitlines() if line.startswith(f"# {kind} ")] for kind in ("HELP", "TYPE")
    ]
    assert described[0] == described[1]
    assert {name.partition("{")[0] for name in FIRST} <= set(described[0])


def test_what_servers_were_sent_is_counted_by_model() -> None:
    metrics = RunMetrics(20)
    costs = {"a": Cost(Spent(num_requests=3, num_retries=1), 0.25), "b": Cost(Spent(num_requests=2), None)}
    metrics.follow(RunStatus("calls"), lambda: 0, lambda: costs)
    found = {name: value for name, value in samples(metrics).items() if name not in FIRST}
    assert found == {
        'mosaic:phase{phase="calls"}': "1",
        'mosaic:requests_total{model_name="a"}': "3",
        'mosaic:requests_total{model_name="b"}': "2",
        'mosaic:retries_total{model_name="a"}': "1",
        'mosaic:retries_total{model_name="b"}': "0",
        'mosaic:cost_dollars_total{model_name="a"}': "0.25",
    }


def test_phases_follow_each_other_and_counters_go_on() -> None:
    metrics, clock = RunMetrics(20), Clock()
    for title, num_calls in (("pilot", 4), ("calls", 60)):
        status = RunStatus(title, Expected(num_calls=num_calls, left_s=lambda view: 9.0), clock=clock)
        metrics.follow(status, lambda: 7)
        run = Run(status.receive, clock)
        calls = run.open(0, "A", 4)
        run.start(0)
        run.finish(0, calls[:2], output_tokens=50)
        run.finish(0, calls[2:3], status=CallStatus.FAILED, output_tokens=0)
        run.finish(0, calls[3:], status=CallStatus.CUT, output_tokens=10)
    found = samples(metrics)
    assert (
        found
        | {
            'mosaic:phase{phase="calls"}': "1",
            "mosaic:questions_done": "7",
            "mosaic:calls": "60",
            "mosaic:calls_done": "4",
            "mosaic:calls_in_flight": "0",
            "mosaic:seconds_left": "9.0",
            'vllm:num_requests_running{model_name="A"}': "0",
            'vllm:request_success_total{model_name="A"}': "4",
            'vllm:generation_tokens_total{model_name="A"}': "220",
            'mosaic:failed_calls_total{model_name="A"}': "2",
        }
        == found
    )


@pytest.mark.slow
def test_counts_are_for_this_machine_unless_another_address_is_named() -> None:
    with serving(RunMetrics(1), 0) as port:
        assert "# TYPE mosaic:lost_workers gauge" in read("127.0.0.1", port)
        with pytest.raises(urllib.error.URLError):
            read("127.0.0.2", port)
    with serving(RunMetrics(1), 0, "0.0.0.0") as port:
        assert "# TYPE" in read("127.0.0.2", port)
