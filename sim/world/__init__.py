"""What would really happen: true lengths and answers. Known to the simulator only."""

from sim.world.world import World

__all__ = ["World"]
