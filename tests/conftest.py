"""Hypothesis draws the same examples in every run; ``pytest --hypothesis-profile=explore`` draws new ones."""

from hypothesis import settings
from hypothesis.internal.conjecture import providers

from tests.float_sums import guard_sums

settings.register_profile("explore", deadline=None, derandomize=False)
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fixed")
# NOTE: Hypothesis also draws numbers and texts that it finds in the source of our modules, as far as they are imported,
# so that examples would depend on which tests are selected. No setting turns that off; tests/test_draws.py checks this.
providers.is_local_module_file = lambda path: False

guard_sums()
