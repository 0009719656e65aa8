"""The workers of a run, and what is known of their kinds, from the groups ``cluster`` and ``hardware``."""

from collections.abc import Mapping
from typing import Any

from experiments.config.checks import require_keys, require_section
from experiments.config.instantiation import call, make_once
from mosaic.core.checks import require, require_count
from mosaic.core.cluster import Cluster, Worker, uniform_cluster
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
        made: Cluster = call(uniform_cluster, "cluster", **cluster, gpu=hardware.gpu)
        return made, (hardware,)
    require_keys(cluster, ("name", "workers", "kinds"), "cluster.")
    require_section(cluster, ("workers", "kinds"), "cluster.")
    kinds = {name: make_once(entry, f"cluster.kinds.{name}") for name, entry in cluster["kinds"].items()}
    workers: list[Worker] = []
    for name, number in cluster["workers"].items():
        require(name in kinds, "cluster.workers: kind", f"one of {list(kinds)}", name)
        require_count(number, f"cluster.workers.{name}", at_least=1)
        workers += [Worker(len(workers) + i, kinds[name].gpu) for i in range(number)]
    used = tuple(kinds[name] for name in cluster["workers"])
    return Cluster(name=cluster["name"], workers=tuple(workers)), used


def has_kinds(config: Mapping[str, Any]) -> bool:
    """Tell whether the cluster names the kinds of its workers itself."""
    return "workers" in config["cluster"]
