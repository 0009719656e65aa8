"""Early exit: rules that say, from what some agents have answered, that the others need not."""

from mosaic.pipelines.exits.agreed import Agreed, AgreedAtRisk, calibrated_exit, calibrated_gate
from mosaic.pipelines.exits.exit import Exit, Meeting, Order, Verdict
from mosaic.pipelines.exits.faster_moa import FasterMoa

__all__ = [
    "Agreed",
    "AgreedAtRisk",
    "Exit",
    "FasterMoa",
    "Meeting",
    "Order",
    "Verdict",
    "calibrated_exit",
    "calibrated_gate",
]
