"""The workers of a run, and what is known of their kinds, from the groups ``cluster`` and ``hardware``."""

from collections.abc import Mapping
from typing import Any

from mosaic.config.instantiation import call, make_once
from mosaic.config.sections import MixedClusterSection, RaySection, section
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, Worker, cluster_of_hosts, uniform_cluster
from mosaic.core.engine_options import Device
from sim.hardware.hardware import Hardware


def machines(config: Mapping[str, Any]) -> tuple[Cluster, tuple[Hardware, ...]]:
    """Build the cluster and the hardware of its kinds, the first worker's first.

    A cluster is so many workers of the kind that the group ``hardware`` names, or lists workers by kind
    (``cluster.workers``) with the hardware of each (``cluster.kinds``).

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    cluster = config["cluster"]
    if not has_kinds(config):
        hardware = make_once(config["hardware"], "hardware")
        if is_ray(config):
            ray = section(cluster, RaySection, "cluster")
            return cluster_of_hosts(name=ray.name, host_sizes=ray.host_sizes, gpu=hardware.gpu), (hardware,)
        made: Cluster = call(uniform_cluster, "cluster", **cluster, gpu=hardware.gpu)
        return made, (hardware,)
    mixed = section(cluster, MixedClusterSection, "cluster")
    kinds = {name: make_once(entry, f"cluster.kinds.{name}") for name, entry in mixed.kinds.items()}
    workers: list[Worker] = []
    for name, number in mixed.workers.items():
        require(name in kinds, "cluster.workers: kind", f"one of {list(kinds)}", name)
        workers += [Worker(len(workers) + i, kinds[name].gpu) for i in range(number)]
    return Cluster(name=mixed.name, workers=tuple(workers)), tuple(kinds[name] for name in mixed.workers)


def is_ray(config: Mapping[str, Any]) -> bool:
    """Tell whether the workers are those of a Ray cluster."""
    return "address" in config["cluster"]


def asked_of_ray(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in what a Ray cluster alone knows: its hosts, and whether it has GPUs. Other clusters are left as they are.

    Only engines of ours run there; a simulation takes as many workers as are given, in one host.

    Raises
    ------
    ValueError, TypeError, BackendError
        Naming the key, the rule and the value, or what is missing of the cluster.
    """
    if not isinstance(config.get("cluster"), Mapping) or not is_ray(config):
        return config
    cluster, backend = dict(config["cluster"]), dict(config["backend"])
    settings = section(cluster, RaySection, "cluster")
    if backend["name"] != "vllm":
        rule = "given where the cluster is not queried"
        require(settings.num_workers is not None, "cluster.num_workers", f"{rule}, backend={backend['name']}", None)
        return {**config, "cluster": {**cluster, "host_sizes": (settings.num_workers,)}}
    from mosaic.engines.ray_cluster import Room, device_of, hosts_of

    if backend.get("device") == "auto":
        backend["device"] = device_of(settings.address).value
    room = Room(device=Device(backend["device"]), cpus_per_worker=settings.cpus_per_worker)
    cluster["host_sizes"] = hosts_of(settings.address, room, settings.num_workers)
    return {**config, "cluster": cluster, "backend": backend}


def has_kinds(config: Mapping[str, Any]) -> bool:
    """Tell whether the cluster names the kinds of its workers itself."""
    return "workers" in config["cluster"]
