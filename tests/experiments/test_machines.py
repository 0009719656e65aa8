"""Clusters of one kind of GPU and of several, from the configuration."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from mosaic.config.batch import BatchRequest, batch_config
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job
from mosaic.core.errors import BackendError
from mosaic.planning import Flexible
from sim.site import SimSite

UNLIKE = ("cluster=a100x2_rtx4090x4", "workload=gpqa", "aggregator=none", "scheduler=flexible", "profile.store=null")


def built(*overrides: str):
    return build_job(compose_config([*overrides]), overrides=overrides).job


def test_a_cluster_lists_its_workers_by_kind() -> None:
    job = built(*UNLIKE)
    assert [worker.gpu.name for worker in job.cluster.workers] == ["a100_80gb"] * 2 + ["rtx4090"] * 4
    assert isinstance(job.scheduler, Flexible)
    assert isinstance(job.site, SimSite)
    assert job.site.hardware.gpu.name == "a100_80gb"
    assert [hardware.gpu.name for hardware in job.site.more_hardware] == ["rtx4090"]
    assert job.site.description.startswith("on a100_80gb, rtx4090")


def test_one_kind_is_as_before() -> None:
    job = built("workload=gpqa", "aggregator=none", "cluster.num_workers=3", "hardware=rtxpro6000")
    assert [worker.gpu.name for worker in job.cluster.workers] == ["rtxpro6000"] * 3
    assert isinstance(job.site, SimSite)
    assert job.site.more_hardware == ()


ON_RAY = ("cluster=ray", "workload=gpqa")
TWO_ON_RAY = (*ON_RAY, "cluster.num_workers=2")


def test_a_simulation_takes_a_ray_cluster_of_so_many_workers() -> None:
    job = built(*ON_RAY, "cluster.num_workers=3")
    assert [(worker.id, worker.host) for worker in job.cluster.workers] == [(0, 0), (1, 0), (2, 0)]
    assert list(job.placements) == ["aggregate"], "aggregator=dp comes along"


@pytest.mark.parametrize(
    ("cluster", "asked", "message"),
    [
        (
            UNLIKE,
            "hardware=rtx4090",
            "hardware must be left out, it has no effect here .cluster=a100x2_rtx4090x4",
        ),
        (UNLIKE, "+cluster.workers.h9=1", "cluster.workers: kind must be one of"),
        (UNLIKE, "cluster.workers.a100_80gb=0", r"cluster.workers.a100_80gb must be"),
        (UNLIKE, "aggregator=dp", "aggregator must be none on a cluster of several kinds"),
        (ON_RAY, "seed=0", "cluster.num_workers must be given where the cluster is not queried, backend=sim, got None"),
        (ON_RAY, "cluster.num_workers=0", "cluster.num_workers must be at least 1, got 0"),
        (TWO_ON_RAY, "cluster.cpus_per_worker=0", "cluster.cpus_per_worker must be"),
        (TWO_ON_RAY, "cluster.address=there:1", "cluster.address must be left out, .* starts no engine"),
        (TWO_ON_RAY, "+cluster.size=4", "cluster.*size"),
        (
            ("workload=gpqa",),
            "+pool.experts.LlamaR1.tp_degrees=[2]",
            "tp_degrees must be left out, it has no effect here .scheduler=ilp takes",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(cluster: tuple[str, ...], asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(*cluster, asked)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"id": "q", "question": "Why?", "experts": ["SmolLM2"]}\n')
    return path


def test_engines_on_ray_need_ray_and_a_cluster(monkeypatch: pytest.MonkeyPatch, questions: Path) -> None:
    asked = ["cluster=ray", "backend=vllm", "hardware=cpu_core", "workload=file", f"workload.path={questions}"]
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"Ray is not installed here: pip install -e '.\[ray\]'"):
        build_job(compose_config([*asked, "pool=demo"]), questions.parent)


@pytest.mark.parametrize(
    ("on", "kind", "overrides", "address", "hardware"),
    [
        ("ray", None, [], "auto", "cpu_core"),
        ("ray://head", "A100-80G", [], "ray://head", "a100_80gb"),
        ("ray", "H100", ["hardware=rtx4090"], "auto", "rtx4090"),
    ],
)
def test_a_batch_on_ray_has_the_hardware_of_its_cluster(
    on: str, kind: str | None, overrides: list[str], address: str, hardware: str, questions: Path
) -> None:
    request = BatchRequest(path=questions, on=on, workers=5, overrides=(*overrides, "pool=demo"))
    with patch("mosaic.engines.ray_cluster.accelerator_of", lambda address: kind):
        config = batch_config(request)
    cluster = config["cluster"]
    assert (cluster["name"], cluster["address"], cluster["num_workers"]) == ("ray", address, 5)
    assert config["hardware"]["gpu_name" if "gpu_name" in config["hardware"] else "name"] == hardware


@pytest.mark.parametrize(
    ("on", "overrides", "message"),
    [
        ("slurm", [], "--on must be ray or ray://HEAD, got 'slurm'"),
        ("ray", ["cluster=local"], "cluster must be left out beside --on"),
        ("ray", [], "hardware must be given: no file of ours is of the cluster's H100"),
    ],
)
def test_what_a_batch_cannot_run_on_is_refused(on: str, overrides: list[str], message: str, questions: Path) -> None:
    request = BatchRequest(path=questions, on=on, overrides=(*overrides, "pool=demo"))
    with (
        patch("mosaic.engines.ray_cluster.accelerator_of", lambda address: "H100"),
        pytest.raises(ValueError, match=message),
    ):
        batch_config(request)


def test_a_program_that_chooses_degrees_takes_them() -> None:
    assert built("workload=gpqa", "scheduler=flexible", "+pool.experts.LlamaR1.tp_degrees=[2]")
