"""Shared parts of studies: a study is a declared sweep, its measurements at a point, a page and figures."""
