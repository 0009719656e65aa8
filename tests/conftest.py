"""Hypothesis draws the same examples in every run; ``pytest --hypothesis-profile=explore`` looks for new ones."""

from hypothesis import settings

settings.register_profile("explore", deadline=None)
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.load_profile("fixed")
