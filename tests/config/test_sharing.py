"""A sweep composes what its points share once, and each point is what Hydra would have composed."""

import pickle
import subprocess
import sys
from copy import deepcopy

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mosaic.config.compose import CONF, MOST_SENT, SharingLoader
from mosaic.config.launch import points_of
from tests.commands.command_line import run_process

POINTS = [
    ["seed=0", "scheduler=ilp", "workload=gpqa"],
    ["scheduler=ilp", "workload=gpqa", "seed=3"],
    ["scheduler=fifo", "scheduler.window_questions=50", "workload.seed=1"],
    ["scheduler.max_replicas=2", "profile.sweep.shard_sizes=[64,128]"],
    ["seed=1", "+pool.experts.LlamaR1.note=x"],
    ["~world.merged_tokens.LlamaR1", "seed=2"],
    ["+policy=ilp_lifted", "seed=2"],
]


@pytest.fixture
def loaders():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", ["hydra.sweep.dir=somewhere"], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        yield master, deepcopy(loader), SharingLoader(loader)


@pytest.mark.slow
def test_every_point_is_what_hydra_composes_from_its_files(loaders) -> None:
    master, loader, sharing = loaders
    for point in [*POINTS, *POINTS]:
        ours, hydras = (each.load_sweep_config(master, point) for each in (sharing, loader))
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(hydras)


@pytest.mark.slow
def test_a_choice_of_groups_is_composed_once(loaders, monkeypatch) -> None:
    master, _, sharing = loaders
    composed = []
    parent = type(sharing).__mro__[1]
    original = parent.load_sweep_config
    monkeypatch.setattr(parent, "load_sweep_config", lambda *given: composed.append(given[2]) or original(*given))
    for seed in range(100, 104):
        for scheduler in ("round_robin", "least_loaded"):
            sharing.load_sweep_config(master, [f"scheduler={scheduler}", "cluster.num_workers=3", f"seed={seed}"])
    assert composed == [["scheduler=round_robin"], ["scheduler=least_loaded"]]


def test_a_file_is_read_once(loaders, monkeypatch) -> None:
    master, _, sharing = loaders
    read = []
    files = next(type(source) for source in sharing.get_sources() if source.scheme() == "file")
    original = files.load_config
    monkeypatch.setattr(files, "load_config", lambda self, path: read.append(path) or original(self, path))
    for scheduler in ("fifo", "data_parallel"):
        sharing.load_sweep_config(master, [f"scheduler={scheduler}"])
    assert len(read) == len(set(read)) > 20


IN_A_PROCESS_OF_ITS_OWN = """
import pickle
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from mosaic.config.compose import CONF, SharingLoader

with initialize_config_dir(str(CONF), version_base="1.3"):
    master = compose("config", ["hydra.sweep.dir=somewhere"], return_hydra_config=True)
    loader = GlobalHydra.instance().config_loader()
    sharing, point = SharingLoader(loader), ["scheduler=round_robin", "seed=1"]
    here = sharing.load_sweep_config(master, point)
    sent = pickle.dumps(sharing)
    type(loader).load_sweep_config = None
    there = pickle.loads(sent).load_sweep_config(master, point)
    assert OmegaConf.to_container(there) == OmegaConf.to_container(here)
"""
"""Where nobody has imported Hydra's plugins anew: what a loader is made of is then not pickled."""


@pytest.mark.slow
def test_a_worker_need_not_compose_what_the_sweep_has_composed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], cwd=CONF.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_composes_what_was_not_sent_to_it(loaders, monkeypatch) -> None:
    """More choices than are kept; and what a worker composes cannot always be pickled there."""
    master, loader, sharing = loaders

    dumps = pickle.dumps

    def refuse(config: DictConfig) -> bytes:
        if "runtime" in config.get("hydra", {}):  # composed: it holds values of plugins' classes
            raise pickle.PicklingError("not the same object")
        return dumps(config)

    monkeypatch.setattr("mosaic.config.compose.pickle.dumps", refuse)
    point = ["seed=0", "scheduler=round_robin"]
    for _ in range(2):
        ours, hydras = (each.load_sweep_config(master, point) for each in (sharing, loader))
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(hydras)


@pytest.mark.slow
def test_joblibs_workers_compose_what_was_not_sent_to_them(tmp_path) -> None:
    schedulers = "ilp,round_robin,least_loaded,data_parallel,fifo,flexible"
    points = (f"scheduler={schedulers}", "workload=mmlu_pro,medmcqa,gpqa")
    outcome = run_process(
        "-m", "hydra/launcher=joblib", f"hydra.sweep.dir={tmp_path}", "backend=none", *points, cwd=tmp_path
    )
    assert outcome.status == 0, outcome.err
    assert len(list(tmp_path.glob("*/summary.json"))) == 18 > MOST_SENT


def test_points_share_no_values(loaders) -> None:
    master, _, sharing = loaders
    first = sharing.load_sweep_config(master, ["seed=1", "scheduler.max_replicas=2"])
    second = sharing.load_sweep_config(master, ["seed=2"])
    assert (first.seed, second.seed) == (1, 2)
    assert first.scheduler.max_replicas == 2 != second.scheduler.max_replicas


@pytest.mark.slow
@pytest.mark.parametrize("point", [["scheduler=none_such"], ["sceduler.max_replicas=1"], ["seed=1", "pool=x"]])
def test_what_cannot_be_composed_is_told_in_hydras_words(loaders, point) -> None:
    master, loader, sharing = loaders
    messages = []
    for each in (loader, sharing):
        with pytest.raises(HydraException) as error:
            each.load_sweep_config(master, point)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_points_are_listed_as_hydra_runs_them() -> None:
    overrides = OverridesParser.create().parse_overrides(["a=1,2", "b=x", "c=range(0,2)", "+d='p,q'"])
    assert points_of(overrides) == [
        ["a=1", "b=x", "c=0", "+d='p,q'"],
        ["a=1", "b=x", "c=1", "+d='p,q'"],
        ["a=2", "b=x", "c=0", "+d='p,q'"],
        ["a=2", "b=x", "c=1", "+d='p,q'"],
    ]
