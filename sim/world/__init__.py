"""Draws the true lengths and answers of calls. Only the simulator knows them."""

from sim.world.world import World

__all__ = ["World"]
