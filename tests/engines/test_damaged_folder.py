"""Whatever happens to a file of a batch's folder: the batch goes on with equal answers, or names the file."""

import json
import shutil
from pathlib import Path

import pytest

from mosaic.runtime.journal import FILE_NAME
from tests.commands.command_line import Outcome
from tests.engines.executor_runs import DAMAGES
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch, write_models

pytestmark = pytest.mark.slow
NAMED = ("work/begun.json", "work/config.yaml")
"""Files that say whose folder it is: where they are damaged, the user decides."""


class Batch:
    """A batch that is done, of which each test gets a fresh copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = write_models(folder)
        self.questions = write_batch(folder, [batch_line(number) for number in range(12)])
        assert self.run().status == 0
        shutil.copytree(folder / "work", folder / "kept" / "work")
        shutil.copytree(folder / "out", folder / "kept" / "out")
        kept = [path for path in sorted((folder / "kept").rglob("*")) if path.is_file() and path.suffix != ".log"]
        self.files = [str(path.relative_to(folder / "kept")) for path in kept]
        self.answers = self.read_answers()

    def run(self) -> Outcome:
        work, out = self.folder / "work", self.folder / "out"
        return run_mosaic("batch", self.questions, "--work", work, "--out", out, *self.models)

    def restore(self) -> None:
        for part in ("work", "out"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
            shutil.copytree(self.folder / "kept" / part, self.folder / part)

    def interrupt(self) -> None:
        """Leave what a driver leaves that is killed after two thirds of its run."""
        journal = self.folder / "work" / "journal" / "run" / FILE_NAME
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[: len(lines) * 2 // 3]))
        (self.folder / "work" / "summary.json").unlink()
        shutil.rmtree(self.folder / "out")

    def read_answers(self) -> list[object]:
        """List the rows of the output, without what differs from start to start."""
        rows = map(json.loads, (self.folder / "out" / "questions.out.jsonl").read_bytes().splitlines())
        return sorted((without(row, "id", "created") for row in rows), key=json.dumps)


def without(value, *names: str):
    if isinstance(value, dict):
        return {name: without(inner, *names) for name, inner in value.items() if name not in names}
    return [without(inner, *names) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    return Batch(tmp_path_factory.mktemp("batch"))


@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "interrupted"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_batch_goes_on_or_names_the_damaged_file(batch, damage, is_complete):
    for name in batch.files:
        batch.restore()
        if not is_complete:
            batch.interrupt()
        path = batch.folder / name
        data = path.read_bytes() if path.exists() else b""
        if DAMAGES[damage](data) == data:
            continue
        path.write_bytes(DAMAGES[damage](data))
        outcome = batch.run()
        if name in NAMED and outcome.status:
            assert (outcome.status, str(batch.folder / "work") in outcome.err) == (2, True), outcome
            if is_complete:
                continue
            path.unlink()
            outcome = batch.run()
        assert (outcome.status, batch.read_answers()) == (0, batch.answers), (name, outcome.err)
