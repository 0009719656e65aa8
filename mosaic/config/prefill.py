"""Whether prompts can be prefilled ahead of time here: ``pipeline.prefill_ahead``."""

from mosaic.config.pipeline import Pipeline
from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions
from mosaic.runtime.job import Reaction

KEY = "pipeline.prefill_ahead"


def check_prefill_ahead(pipeline: Pipeline, backend: str, options: EngineOptions) -> None:
    """Refuse to prefill ahead where it could not have an effect.

    Raises
    ------
    ValueError
        Naming what is in its way.
    """
    require(bool(pipeline.graph.upper_nodes), KEY, "false where no call reads others", True)
    is_early = bool(pipeline.reactions & {Reaction.OVERLAP, Reaction.NO_BARRIER})
    require(is_early, KEY, "false unless pipeline.overlap=true or pipeline.barrier=false", True)
    require(backend != "endpoint", KEY, "false with backend=endpoint: nobody says which server holds a prompt", True)
    caches = options.caches_prefixes if backend == "sim" else options.enable_prefix_caching is not False
    rule = "false where engines cache no prefixes: they do with backend.order=mixed, and on real vLLM"
    require(caches, KEY, rule, True)
