"""Compares run folders, paired by seed."""
