"""The paper's integer linear program (`formulation`), solved by HiGHS."""

from mosaic.planning.ilp.ilp import Ilp

__all__ = ["Ilp"]
