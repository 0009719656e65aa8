"""Trains the tiny experts that really answer on a CPU."""
