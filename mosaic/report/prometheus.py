"""A run's counts for Prometheus, under vLLM's names where vLLM has one; one series a model."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from mosaic.core.workload import ExpertName
from mosaic.report.run_status import RunStatus

LOOPBACK = "127.0.0.1"


class _Metric(NamedTuple):
    name: str
    kind: str
    help: str


COUNTERS = {
    "prompt_tokens": _Metric("vllm:prompt_tokens_total", "counter", "Prompt tokens of calls that have ended."),
    "output_tokens": _Metric("vllm:generation_tokens_total", "counter", "Tokens that these calls have written."),
    "ended": _Metric("vllm:request_success_total", "counter", "Calls that have ended with a text."),
    "preemptions": _Metric("vllm:num_preemptions_total", "counter", "Preemptions of calls that have ended."),
    "failed": _Metric("mosaic:failed_calls_total", "counter", "Calls that have failed."),
}
"""By what ``RunStatus.counts`` counts, since this process began."""
RUNNING = _Metric("vllm:num_requests_running", "gauge", "Calls that engines have.")
WAITING = _Metric("vllm:num_requests_waiting", "gauge", "Calls that were submitted and wait.")
PHASE = _Metric("mosaic:phase", "gauge", "What the batch does now, as a label; the value is 1.")
QUESTIONS = _Metric("mosaic:questions", "gauge", "Questions of the batch.")
QUESTIONS_DONE = _Metric("mosaic:questions_done", "gauge", "Questions whose calls have all ended.")
CALLS = _Metric("mosaic:calls", "gauge", "Calls of this phase that are known.")
CALLS_DONE = _Metric("mosaic:calls_done", "gauge", "Calls of this phase that have ended.")
IN_FLIGHT = _Metric("mosaic:calls_in_flight", "gauge", "Calls that engines have, of all models.")
LEFT = _Metric("mosaic:seconds_left", "gauge", "Seconds until the calls that are known have ended; NaN: not known.")
LOST = _Metric("mosaic:lost_workers", "gauge", "Workers that are lost.")


class RunMetrics:
    """What a batch says of itself, from its first second on.

    Parameters
    ----------
    num_questions
        Of the batch.
    """

    def __init__(self, num_questions: int) -> None:
        self._num_questions = num_questions
        self._count_done: Callable[[], int] = lambda: 0
        self._status = RunStatus("starting")
        self._before: defaultdict[str, Counter[ExpertName]] = defaultdict(Counter)
        """Counts of the phases before this one."""

    def follow(self, status: RunStatus, count_done: Callable[[], int]) -> None:
        """Go on with the status of the phase that begins; ``count_done`` gives the questions that are done."""
        for what, counts in self._status.counts.items():
            self._before[what].update(counts)
        self._status, self._count_done = status, count_done

    def _total(self, what: str) -> Counter[ExpertName]:
        """Count over all phases, the zeros too; the run's own counter grows in another thread."""
        total = self._before[what].copy()
        total.update(self._status.counts[what].copy())
        return total

    def text(self) -> str:
        """Write the counts in Prometheus' text format."""
        status = self._status
        in_flight = status.calls_in_flight()
        waiting = status.open_calls()
        waiting.subtract(in_flight)
        series = [
            *((metric, self._total(what)) for what, metric in COUNTERS.items()),
            (RUNNING, in_flight),
            (WAITING, +waiting),
        ]
        totals = [
            (QUESTIONS, self._num_questions),
            (QUESTIONS_DONE, self._count_done()),
            (CALLS, status.num_calls),
            (CALLS_DONE, status.num_ended),
            (IN_FLIGHT, in_flight.total()),
            (LEFT, "NaN" if status.left_s is None else f"{status.left_s:.1f}"),
            (LOST, status.num_lost),
        ]
        lines = [_described(PHASE), f'{PHASE.name}{{phase="{_escaped(status.title)}"}} 1']
        for metric, value in totals:
            lines += [_described(metric), f"{metric.name} {value}"]
        for metric, counts in series:
            lines += [_described(metric), *_by_model(metric, counts)]
        return "\n".join(lines) + "\n"


def _described(metric: _Metric) -> str:
    return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}"


def _by_model(metric: _Metric, counts: Mapping[ExpertName, int]) -> list[str]:
    return [f'{metric.name}{{model_name="{_escaped(expert)}"}} {count}' for expert, count in sorted(counts.items())]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def serving(metrics: RunMetrics, port: int | None, host: str = LOOPBACK) -> Iterator[int | None]:
    """Serve the counts at /metrics while a run lasts; gives the port, of which 0 lets the system choose.

    Only this machine can read them, unless ``host`` is an address that others reach.

    Raises
    ------
    OSError
        If the port is taken, or the address is none of this machine's.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = metrics.text().encode() if self.path in ("/", "/metrics") else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Write nothing to stderr."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
