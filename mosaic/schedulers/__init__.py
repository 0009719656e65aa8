"""Policies: each turns a problem into a plan."""
