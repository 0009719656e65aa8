"""Backends that run plans on real engines."""
