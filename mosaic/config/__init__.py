"""Turns a Hydra configuration into plain values: the only package that knows both."""
