"""Files that somebody sends run no code here, read no environment and write nothing outside of their folder."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mosaic.commands.audit import read_job
from mosaic.config.batch import BatchRequest, batch_config
from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.job import build_job
from mosaic.config.received import own_targets
from mosaic.core.workload import AnswerKind
from tests.commands.command_line import QUICK, SMALL, mosaic_status, run_here, run_point
from tests.engines.fake_batch import NAMES, batch_line, run_mosaic, write_batch, write_models

SECRET = "s3cret-of-the-environment"
NAMED = "${oc.env:MOSAIC_TEST_SECRET}"
EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\ndef same(one, other):\n    return True\n"
SIMULATED = (*SMALL, *QUICK, "aggregator=tp4")


class Unpickled:
    """Imports the module where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("evil_module",)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Put a module there that leaves a mark when it is imported; tells whether it was."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil_module.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path / "evil")
    monkeypatch.setenv("MOSAIC_TEST_SECRET", SECRET)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Unpickled()))
    yield (tmp_path / "evil" / "ran").exists
    sys.modules.pop("evil_module", None)


@cache
def recorded() -> dict[str, Any]:
    return as_recorded(compose_config([*SIMULATED]))


def received(folder: Path, key: str = "", value: object = None) -> Path:
    """Write a batch's folder as somebody may send it; gives its output file."""
    config = deepcopy(recorded())
    inner: Any = config
    *groups, last = key.split(".")
    for group in groups:
        inner = inner[group]
    if key:
        inner[last] = value
    work = folder / "questions.mosaic"
    (work / "journal").mkdir(parents=True)
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    about = {"skipped_aggregator": True, "answer": "A"}
    line = {"custom_id": "q0", "response": {"body": {"mosaic": about}}}
    (folder / "questions.out.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "questions.out.jsonl"


LOADS = {"_target_": "joblib.load", "filename": "TMP/evil.pkl"}
PAYLOADS: dict[str, tuple[str, Any]] = {
    "pickle": ("scheduler", LOADS),
    "numpy": ("hardware", {"_target_": "numpy.load", "file": "TMP/evil.pkl", "allow_pickle": True}),
    "sympify": ("gate", {"_target_": "sympy.sympify", "a": "__import__('evil_module')"}),
    "importlib": ("costs", {"_target_": "importlib.import_module", "name": "evil_module"}),
    "an_import_in_a_module_of_ours": (
        "scheduler",
        {"_target_": "mosaic.engines.host.importlib.import_module", "name": "evil_module"},
    ),
    "a_function_of_ours_that_writes": ("costs", {"_target_": "mosaic.engines.checkpoints.write_manifest", "path": "/"}),
    "no_name": ("scheduler", {"_target_": ["joblib.load"], "filename": "TMP/evil.pkl"}),
    "a_module": ("workload", {"_target_": "evil_module.same"}),
    "below_another": ("pool.experts.GLM.shape", LOADS),
    "in_a_list": ("workload.first_seen", [LOADS]),
    "comparison": ("aggregator.comparison", "evil_module.same"),
    "a_name_that_is_composed": ("scheduler", {"_target_": "${oc.decode:joblib.load}", "filename": "TMP/evil.pkl"}),
    "the_checkpoints_own_code": ("backend", {"name": "vllm", "engine": {"trust_remote_code": True}}),
    "a_cluster_of_somebody": ("cluster.address", "ray://somewhere.example:10001"),
}
"""Keys of a received configuration, and values that run code; TMP holds a pickle that runs code."""


@pytest.mark.parametrize(("key", "value"), PAYLOADS.values(), ids=PAYLOADS)
def test_an_audit_of_a_received_folder_runs_nothing_of_it(
    key: str, value: Any, tmp_path: Path, ran: Callable[[], bool]
) -> None:
    value = json.loads(json.dumps(value).replace("TMP", str(tmp_path)))
    outcome = run_mosaic("audit", received(tmp_path / "sent", key, value))
    assert not ran()
    assert outcome.status == 2
    assert f"config.yaml: {key}" in outcome.err
    assert "must be on the command line too, with the same value" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "is_allowed"),
    [
        ([], False),
        (["--server", "http://127.0.0.1:1/v1"], False),
        (["--server", "http://127.0.0.1:1/v1", "--key-env", "OTHER"], False),
        (["--server", "http://127.0.0.1:2/v1", "--key-env", "MY_KEY"], False),
        (["--server", "http://127.0.0.1:1", "--key-env", "MY_KEY"], True),
    ],
)
def test_a_key_goes_to_a_server_of_a_received_folder_only_where_the_command_line_names_both(
    options: list[str], is_allowed: bool, tmp_path: Path
) -> None:
    servers = [{"base_url": "http://127.0.0.1:1/v1", "expert": "A", "model": "a", "api_key_env": "MY_KEY"}]
    out = received(tmp_path / "sent", "backend", {"name": "endpoint", "endpoints": servers})
    outcome = run_mosaic("audit", out, *options)
    assert outcome.status == 2
    refusal = "a folder does not decide that by itself: --server http://127.0.0.1:1/v1 --key-env MY_KEY"
    assert (refusal in outcome.err) != is_allowed


def test_code_that_the_command_line_names_too_runs(tmp_path: Path, ran: Callable[[], bool]) -> None:
    out = received(tmp_path / "sent", "aggregator.comparison", "evil_module.same")
    other = run_mosaic("audit", out, "aggregator.comparison=evil_module.other")
    assert (other.status, ran()) == (2, False)
    job, _ = read_job(out.with_name("questions.mosaic"), ["aggregator.comparison=evil_module.same"])
    assert job.graph.compare[AnswerKind.TEXT].__module__ == "evil_module"


def test_an_audit_takes_no_other_overrides(tmp_path: Path) -> None:
    outcome = run_mosaic("audit", received(tmp_path), "scheduler._target_=mosaic.planning.RoundRobin")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "scheduler._target_ must be left out: " in outcome.err


@pytest.mark.parametrize("text", [NAMED, "${oc.create:{_target_:joblib.load,filename:TMP/evil.pkl}}", "???", "${"])
def test_text_of_a_received_configuration_stays_as_it_is(text: str, tmp_path: Path, ran: Callable[[], bool]) -> None:
    text = text.replace("TMP", str(tmp_path))
    out = received(tmp_path / "sent", "workload.name", text)
    job, _ = read_job(out.with_name("questions.mosaic"))
    assert (job.workload.name, ran()) == (text, False)


def test_a_received_configuration_may_make_what_conf_makes_all_of_it_ours() -> None:
    assert {"mosaic.planning.Ilp", "mosaic.core.Expert", "sim.hardware.hardware_from_config"} <= own_targets()
    for name in own_targets():
        made = resolve_name(name)
        assert callable(made)
        assert made.__module__.startswith(("mosaic.", "sim."))


def compare_it(folder: Path) -> int:
    return mosaic_status("compare", folder)


def run_in_it(folder: Path) -> int:
    return run_point(*SIMULATED, f"hydra.run.dir={folder}").status


def batch_in_it(folder: Path) -> int:
    path = write_batch(folder.parent, [batch_line(0)])
    models = write_models(folder.parent)
    return run_mosaic("batch", path, *models, "--work", folder).status


def quote_in_it(folder: Path) -> int:
    (folder / "quote").mkdir()
    (folder / "config.yaml").rename(folder / "quote" / "config.yaml")
    path = write_batch(folder.parent, [batch_line(0)])
    return run_mosaic("quote", path, *write_models(folder.parent), "--folder", folder).status


@pytest.mark.parametrize("command", [compare_it, run_in_it, batch_in_it, quote_in_it])
def test_other_commands_that_read_a_received_folder_run_nothing_of_it(
    command: Callable[[Path], int], tmp_path: Path, ran: Callable[[], bool]
) -> None:
    out = received(tmp_path / "sent", "scheduler", {"_target_": "joblib.load", "filename": str(tmp_path / "evil.pkl")})
    folder = out.with_name("questions.mosaic")
    (folder / "summary.json").write_text('{"num_failed_calls": 0}')
    with suppress(SystemExit):
        assert command(folder) != 0
    assert not ran()


@pytest.mark.parametrize("key", ["plan.path", "profile.path"])
def test_a_received_plan_or_profile_holds_values_only(key: str, tmp_path: Path, ran: Callable[[], bool]) -> None:
    evil = {"_target_": "joblib.load", "filename": str(tmp_path / "evil.pkl")}
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"layers": [evil], "entries": [evil]}))
    outcome = run_point(*SIMULATED, f"{key}={path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    assert f"{path}: " in outcome.err
    assert not ran()


def test_received_answers_of_a_type_that_pickles_are_a_table_only(tmp_path: Path, ran: Callable[[], bool]) -> None:
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Unpickled())}
    fields = [pa.field(name, pa.string(), metadata=kind) for name in ("question", "id")]
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table([["a"], ["b"]], schema=pa.schema(fields)), path)
    for setting in ("gate=calibrated\ngate.calibration", "workload=file\nworkload.path"):
        run = f"hydra.run.dir={tmp_path / 'run'}"
        assert run_point(*QUICK, *f"{setting}={path}".split("\n"), run).status == 2
    assert not ran()


OUTSIDE = "../../../../../../outside"
"""From a measurement's journal out of the folder of the questions."""


def write_named(folder: Path) -> tuple[Path, list[str]]:
    """Write questions and a list of models with names that are paths or interpolations; gives both as arguments."""
    folder.mkdir(parents=True)
    options = write_models(folder.parent)
    checkpoints = Path(options[options.index("--checkpoints") + 1])
    entries = [
        {"model_name": name, "litellm_params": {"model": str(checkpoints / own)}}
        for name, own in zip((NAMED, OUTSIDE, "a/b"), NAMES, strict=False)
    ]
    (folder / "models.yaml").write_text(yaml.safe_dump({"model_list": entries}))
    path = write_batch(folder, [batch_line(number) for number in range(12)], f"{NAMED}.jsonl")
    return path, ["profile.source=calibration", *options[options.index("backend.device=cpu") :]]


def test_names_of_models_and_of_question_files_are_data(
    tmp_path: Path, ran: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, overrides = write_named(tmp_path / "here")
    models = str(path.with_name("models.yaml"))
    request = BatchRequest(path=path, models=models, aggregator=OUTSIDE, overrides=tuple(overrides))
    journal = tmp_path / "journal"
    job = build_job(batch_config(request), journal).job
    assert [expert.name for expert in job.experts] == [NAMED, OUTSIDE, "a/b"]
    assert job.workload.name == NAMED
    made: list[Path] = []
    monkeypatch.setattr(job.site, "make", lambda path, content, **_: made.append(path) or SimpleNamespace())
    job.site.backend({}, lambda call, inputs: "", name=f"profile_aggregate_{OUTSIDE}_tp1", is_measured=True)
    job.site.backend({}, lambda call, inputs: "", name="..", is_measured=True)
    assert [path.parent.resolve() for path in made] == [journal, journal]
    assert ".." not in {path.name for path in made}


@pytest.mark.slow
def test_a_batch_of_such_names_keeps_to_its_folder_and_shows_no_secret(tmp_path: Path, ran: Callable[[], bool]) -> None:
    place = tmp_path / "in" / "here"
    path, overrides = write_named(place)
    before = {*tmp_path.rglob("*")}
    models = place / "models.yaml"
    outcome = run_mosaic("batch", path, "--models", models, "--aggregator", OUTSIDE, *overrides)
    assert outcome.status == 0, outcome.err
    made = {*tmp_path.rglob("*")} - before
    assert [found for found in made if place not in found.parents] == []
    assert any("%2F" in found.name for found in made), "where measurements of the aggregator are kept"
    out = json.loads((place / f"{NAMED}.out.jsonl").read_text().splitlines()[0])
    assert {vote["expert"] for vote in out["response"]["body"]["mosaic"]["votes"]} == {NAMED, OUTSIDE, "a/b"}
    shown = outcome.out + outcome.err
    assert SECRET not in shown + "".join(found.read_text(errors="replace") for found in made if found.is_file())


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.getcwd []", 'model_list: [{model_name: "a\\eb", litellm_params: {model: m}}]']
)
def test_a_list_of_models_holds_names_only(text: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(text)
    path = write_batch(tmp_path, [batch_line(0)])
    outcome = run_mosaic("batch", path, "--models", tmp_path / "models.yaml")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "must be" in outcome.err


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--exp"])
def test_a_pickled_configuration_is_not_read(flag: str, tmp_path: Path, ran: Callable[[], bool]) -> None:
    outcome = run_here(f"{flag}={tmp_path / 'evil.pkl'}")
    assert not ran()
    assert outcome.status == 2
    assert "error: --experimental-rerun must be left out: it runs whatever code its file names" in outcome.err
