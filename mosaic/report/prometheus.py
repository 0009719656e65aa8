"""A run's counts for Prometheus, under vLLM's names where vLLM has one; one series a model."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mosaic.core.commands import Command
from mosaic.core.events import Event, Finished, Joined, Lost, Progress
from mosaic.core.results import CallStatus
from mosaic.core.workload import ExpertName
from mosaic.report.run_status import RunView

LOOPBACK = "127.0.0.1"
TYPES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "mosaic:failed_calls_total": "counter",
    "mosaic:lost_workers": "gauge",
}


class RunMetrics:
    """A controller that counts and answers nothing."""

    reacts = False

    def __init__(self) -> None:
        self._counts: dict[str, Counter[ExpertName]] = {name: Counter() for name in TYPES}
        self._running: dict[int, int] = {}
        self._view: RunView | None = None

    def on(self, event: Event, view: RunView) -> tuple[Command, ...]:
        """Take an event in."""
        self._view = view
        if isinstance(event, Finished):
            record, counts = event.record, self._counts
            counts["vllm:prompt_tokens_total"][record.expert] += record.prompt_tokens
            counts["vllm:generation_tokens_total"][record.expert] += record.output_tokens
            counts["vllm:num_preemptions_total"][record.expert] += record.num_preemptions
            is_done = record.status is CallStatus.FINISHED
            counts["vllm:request_success_total" if is_done else "mosaic:failed_calls_total"][record.expert] += 1
        elif isinstance(event, Progress):
            self._running[event.session] = len(event.tokens)
        elif isinstance(event, Lost):
            self._counts["mosaic:lost_workers"][""] += 1
        elif isinstance(event, Joined):
            self._counts["mosaic:lost_workers"][""] -= 1
        return ()

    def text(self) -> str:
        """Write the counts in Prometheus' text format."""
        self._set_gauges()
        lines = []
        for name, kind in TYPES.items():
            lines.append(f"# TYPE {name} {kind}")
            for expert, count in sorted(self._counts[name].copy().items()):
                label = f'{{model_name="{_escaped(expert)}"}}' if expert else ""
                lines.append(f"{name}{label} {count}")
        return "\n".join(lines) + "\n"

    def _set_gauges(self) -> None:
        view = self._view
        if view is None:
            return
        running: Counter[ExpertName] = Counter()
        for number, count in list(self._running.items()):
            running[view.opened[number].expert] += 0 if number in view.ended else count
        open_calls = Counter(call.expert for key, call in list(view.calls.items()) if key not in view.records)
        waiting = Counter({expert: max(0, count - running[expert]) for expert, count in open_calls.items()})
        self._counts |= {"vllm:num_requests_running": running, "vllm:num_requests_waiting": waiting}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def serving(metrics: RunMetrics, port: int | None, host: str = LOOPBACK) -> Iterator[int | None]:
    """Serve the counts at /metrics while a run lasts; gives the port, of which 0 lets the system choose.

    Nobody but this machine reads them, unless ``host`` is an address that others reach.

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
            """Say nothing on stderr."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
