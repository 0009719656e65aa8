"""Builds the workers of a run, and the hardware of their kinds, from the groups ``cluster`` and ``hardware``."""

from dataclasses import replace
from typing import NamedTuple

from mosaic.config.instantiation import call, make_once
from mosaic.config.sections import Group, MixedClusterSection, RaySection, Sections, section
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, Worker, cluster_of_hosts, uniform_cluster
from mosaic.core.engine_options import Device
from sim.hardware.hardware import Hardware


class Machines(NamedTuple):
    """Workers, and their hardware."""

    cluster: Cluster
    kinds: tuple[Hardware, ...]
    """The first worker's hardware first."""
    ray: RaySection | None = None
    """Where the workers are those of a Ray cluster."""


def machines(cluster: Group, hardware: Group) -> Machines:
    """Build the cluster and the hardware of its kinds.

    A cluster is a number of workers of the kind in the group ``hardware``. Or it lists workers by kind
    (``cluster.workers``) with the hardware of each (``cluster.kinds``).

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if not has_kinds(cluster):
        kind = make_once(hardware, "hardware")
        if is_ray(cluster):
            ray = section(cluster, RaySection, "cluster")
            return Machines(cluster_of_hosts(name=ray.name, host_sizes=ray.host_sizes, gpu=kind.gpu), (kind,), ray)
        return Machines(call(uniform_cluster, "cluster", **cluster, gpu=kind.gpu), (kind,))
    mixed = section(cluster, MixedClusterSection, "cluster")
    kinds = {name: make_once(entry, f"cluster.kinds.{name}") for name, entry in mixed.kinds.items()}
    workers: list[Worker] = []
    for name, number in mixed.workers.items():
        require(name in kinds, "cluster.workers: kind", f"one of {list(kinds)}", name)
        workers += [Worker(len(workers) + i, kinds[name].gpu) for i in range(number)]
    return Machines(Cluster(name=mixed.name, workers=tuple(workers)), tuple(kinds[name] for name in mixed.workers))


def is_ray(cluster: Group) -> bool:
    """Return whether the workers are those of a Ray cluster."""
    return "address" in cluster


def has_kinds(cluster: Group) -> bool:
    """Return whether the cluster names the kinds of its workers itself."""
    return "workers" in cluster


def resolve_ray(given: Sections) -> Sections:
    """Add what only a Ray cluster knows: its machines, and whether it has GPUs. Other clusters are not changed.

    Only mosaic's engines run there; a simulation takes the given number of workers, in one machine.

    Raises
    ------
    ValueError, TypeError, BackendError
        Naming the key, the rule and the value, or what is missing of the cluster.
    """
    if not is_ray(given.cluster):
        return given
    backend, settings = dict(given.backend), section(given.cluster, RaySection, "cluster")
    if backend["name"] != "vllm":
        rule = f"given where the cluster is not queried, backend={backend['name']}"
        require(settings.num_workers is not None, "cluster.num_workers", rule, None)
        return replace(given, cluster={**given.cluster, "host_sizes": (settings.num_workers,)})
    from mosaic.engines.ray_cluster import Room, device_of, hosts_of

    if backend.get("device") == "auto":
        backend["device"] = device_of(settings.address).value
    room = Room(device=Device(backend["device"]), cpus_per_worker=settings.cpus_per_worker)
    host_sizes = hosts_of(settings.address, room, settings.num_workers)
    return replace(given, cluster={**given.cluster, "host_sizes": host_sizes}, backend=backend)
