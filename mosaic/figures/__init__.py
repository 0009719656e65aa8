"""Draws figures of runs and of comparisons."""
