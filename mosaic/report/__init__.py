"""What a run leaves: run folder, tables, trace, metrics, screen, progress."""
