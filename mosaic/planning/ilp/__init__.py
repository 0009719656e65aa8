"""The paper's integer linear program (`formulation`) and a more flexible one (`flexible_model`), solved by HiGHS."""

from mosaic.planning.ilp.flexible import Flexible
from mosaic.planning.ilp.ilp import Ilp

__all__ = ["Flexible", "Ilp"]
