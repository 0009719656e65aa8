"""Who may read a run's counts."""

import urllib.error
import urllib.request

import pytest

from mosaic.report.prometheus import RunMetrics, serving


def read(host: str, port: int | None) -> str:
    text: bytes = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read()
    return text.decode()


@pytest.mark.slow
def test_counts_are_for_this_machine_unless_another_address_is_named() -> None:
    with serving(RunMetrics(), 0) as port:
        assert "# TYPE mosaic:lost_workers gauge" in read("127.0.0.1", port)
        with pytest.raises(urllib.error.URLError):
            read("127.0.0.2", port)
    with serving(RunMetrics(), 0, "0.0.0.0") as port:
        assert "# TYPE" in read("127.0.0.2", port)
