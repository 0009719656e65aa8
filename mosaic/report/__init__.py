"""The output of a run: run folder, tables, trace, metrics, screen, progress."""
