"""Simulates a GPU cluster with discrete events, behind the backend interface of mosaic."""
