from io import StringIO

from mosaic.progress import Progress, show_progress
from tests.run_records import make_record


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_nobody_watching_means_no_listener_and_no_output(capsys):
    stream = StringIO()
    with show_progress(10, stream) as listener:
        assert listener is None
    with show_progress(10) as listener:  # pytest's captured stderr is no terminal
        assert listener is None
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar_that_never_reacts():
    stream = Terminal()
    with show_progress(2, stream) as listener:
        assert isinstance(listener, Progress)
        assert listener.on_finish(make_record()) == ()
    assert "calls" in stream.getvalue()
    assert "2" in stream.getvalue()


def test_bar_advances_once_for_each_call():
    class Bar:
        total = 0

        def update(self, n: int) -> None:
            self.total += n

    bar = Bar()
    for question in ("q0", "q1", "q2"):
        Progress(bar).on_finish(make_record(question))
    assert bar.total == 3
