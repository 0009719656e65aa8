"""Run folders, paired by seed."""
