"""The README's examples of a workload, an expert and a scheduler of one's own, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("ilp on", "makespan", "experts", "worker 0", "gate", "saved", "accuracy")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def block(title: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)
    assert found is not None, f"README section {title!r} has no {language} block"
    return found.group(1)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run(folder: Path, *overrides: str) -> str:
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), *overrides, f"hydra.run.dir={folder / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "summary.json").exists()
    return done.stdout


def test_the_screen_shown_is_the_default_run(tmp_path: Path) -> None:
    shown = run(tmp_path, "scheduler=ilp", "backend=sim")
    lines = [line.strip() for line in shown.splitlines() if line.strip().startswith(SHOWN)]
    assert len(lines) == len(SHOWN)
    for line in lines:
        assert line in README


def test_questions_of_ones_own_run(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", block("A workload of your own", "json"))
    assert "2 questions, 6 + 2 calls" in run(tmp_path, "workload=file", "workload.path=mine.jsonl")


def test_a_slot_table_of_ones_own_runs(tmp_path: Path) -> None:
    write(tmp_path / "myconf" / "workload" / "mine.yaml", block("A workload of your own", "yaml"))
    assert "100 questions, 300 + 20 calls" in run(tmp_path, "--config-dir", "myconf", "workload=mine")


def test_an_expert_and_a_pool_of_ones_own_run(tmp_path: Path) -> None:
    expert, pool = re.split(
        r"^# myconf/pool/mine.yaml\n", block("An expert and a pool of your own", "yaml"), flags=re.M
    )
    write(tmp_path / "myconf" / "expert" / "mine.yaml", expert)
    write(tmp_path / "myconf" / "pool" / "mine.yaml", pool)
    lines = [f'{{"id": "q{i}", "prompt_tokens": 100, "experts": ["Mine", "Qwen"]}}\n' for i in range(20)]
    write(tmp_path / "mine.jsonl", "".join(lines))
    overrides = ("workload=file", "workload.path=mine.jsonl", "pool=mine")
    assert "Mine" in run(tmp_path, "--config-dir", "myconf", *overrides)


def test_a_scheduler_of_ones_own_runs(tmp_path: Path) -> None:
    write(tmp_path / "my_policies.py", block("A scheduler of your own", "python"))
    line = re.search(r"echo '(.*)' > (\S+)", section("A scheduler of your own"))
    assert line is not None
    write(tmp_path / line.group(2), line.group(1) + "\n")
    shown = run(tmp_path, "--config-dir", "myconf", "scheduler=everything_on_one", "workload=gpqa")
    assert "everything_on_one on gpqa" in shown


@pytest.mark.parametrize(
    "title", ["A workload of your own", "An expert and a pool of your own", "A scheduler of your own"]
)
def test_examples_stay_short(title: str) -> None:
    longest = max(len(text.splitlines()) for text in re.findall(r"^```\w+\n(.*?)^```", section(title), re.M | re.S))
    assert longest <= 22
