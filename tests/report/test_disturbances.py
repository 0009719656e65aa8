import pytest

from mosaic.report.disturbances import describe_disturbances

ONCE = [{"ts": 41.2, "pause_s": 60.0}]
TWICE = [*ONCE, {"ts": 1000.0, "pause_s": 5.0}]
UNKNOWN = [{"ts": 41.2, "pause_s": None}]
LOST = [{"ts": 12.0, "worker": 2, "cause": "unplugged"}]


@pytest.mark.parametrize(
    ("resumptions", "lost", "text"),
    [
        ([], [], ""),
        (None, None, ""),
        (ONCE, [], "resumed once (at 41.2 s, after a pause of 60.0 s)"),
        (UNKNOWN, [], "resumed once (at 41.2 s, after a pause that is not known)"),
        (TWICE, [], "resumed 2 times (the last at 1,000.0 s, after a pause of 65.0 s in all)"),
        ([], LOST, "lost worker 2 at 12.0 s"),
        (ONCE, LOST * 2, "resumed once (at 41.2 s, after a pause of 60.0 s) and lost workers 2 at 12.0 s, 2 at 12.0 s"),
    ],
)
def test_what_disturbed_a_run_is_said_in_words(resumptions, lost, text):
    assert describe_disturbances({"resumptions": resumptions, "lost_workers": lost}) == text


def test_an_older_summary_says_nothing():
    assert describe_disturbances({"workload": "gpqa"}) == ""
