"""A Ray cluster of emulated nodes on this machine, for tests that run in a process of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
STORE_BYTES = 80 * 2**20


def has_ray() -> bool:
    return find_spec("ray") is not None


class Nodes:
    """Nodes by name, each with room for so many workers of one core."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = {}

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, name: str, num_workers: int = 1, wait: bool = True) -> None:
        self.nodes[name] = self.cluster.add_node(num_cpus=num_workers, wait=wait, object_store_memory=STORE_BYTES)

    def kill(self, name: str) -> None:
        """Kill all of a node at once, as a power cut does."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)


@contextmanager
def emulated_nodes(*names: str, num_workers: int = 1) -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        for name in names:
            nodes.add(name, num_workers)
        yield nodes
    finally:
        nodes.cluster.shutdown()
