"""Code of a user's own that fails: its file, its line and its traceback are shown, without mosaic's before it."""

from pathlib import Path

import pytest

from mosaic.config import errors
from tests.commands.command_line import QUICK, SMALL, Outcome, run_here, run_point

SCHEDULER = '''"""A policy."""


class Mine:
    name = "mine"

    def __init__(self, **options):
        pass

    def plan(self, problem):
        BODY
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MOSAIC_TRACEBACK", raising=False)
    return tmp_path / f"own_{tmp_path.name.replace('-', '_')}.py"


def run_with(module: Path, source: str, folder: Path) -> Outcome:
    module.write_text(source)
    target = f"scheduler._target_={module.stem}.Mine"
    return run_point("scheduler=round_robin", target, *SMALL, *QUICK, f"hydra.run.dir={folder / 'run'}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return problem.cost", "AttributeError: 'Problem' object has no attribute 'cost'"),
        ("raise KeyError(3)", "KeyError: 3"),
        ("problem.expert('Nobody')", "Nobody"),
    ],
)
def test_a_slip_in_a_scheduler_shows_its_line(body: str, says: str, module: Path, tmp_path: Path) -> None:
    outcome = run_with(module, SCHEDULER.replace("BODY", body), tmp_path)
    assert outcome.status == 2
    own = outcome.err.partition(errors.TRACEBACK)[2].splitlines()
    assert own[:2] == [f'  File "{module}", line 11, in plan', f"    {body}"]
    assert says in own[-1]
    assert "mistake of mosaic" not in outcome.err


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("class Mine\n    pass\n", "line 1"),
        ("import nothing_of_that_name\n", "No module named"),
    ],
)
def test_a_module_that_cannot_be_imported_shows_its_line(source: str, says: str, module: Path, tmp_path: Path) -> None:
    outcome = run_with(module, source, tmp_path)
    assert outcome.status == 2
    assert outcome.err.startswith("error: scheduler._target_ must be importable")
    own = outcome.err.partition(errors.TRACEBACK)[2]
    assert f'File "{module}", line 1' in own
    assert says in own


def test_a_sweep_shows_it_too(module: Path, tmp_path: Path) -> None:
    module.write_text(SCHEDULER.replace("BODY", "return problem.cost"))
    outcome = run_here(
        "-m", "scheduler=round_robin", f"scheduler._target_={module.stem}.Mine", *SMALL, *QUICK,
        f"hydra.sweep.dir={tmp_path}", f"profile.store={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}",
    )  # fmt: skip
    assert outcome.status == 2
    assert f'File "{module}", line 11, in plan' in outcome.err


def test_what_mosaic_refuses_stays_one_line(module: Path, tmp_path: Path) -> None:
    outcome = run_with(module, SCHEDULER.replace("BODY", "return None"), tmp_path)
    assert errors.TRACEBACK not in outcome.err
