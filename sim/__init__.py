"""Sim: a discrete-event GPU cluster behind the backend interface of mosaic."""
