"""The early exit of a run, from the group ``exit``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mosaic.config.instantiation import make
from mosaic.config.sections import ExitSection, section
from mosaic.core.checks import require
from mosaic.core.workload import Expert
from mosaic.pipelines.rules.faster_moa import Embed, Similarity
from mosaic.pipelines.rules.rule import Majority, Order, Rule, Scope


def exit_from(
    config: Mapping[str, Any],
    experts: Sequence[Expert],
    embed_by: Callable[[Expert], Embed],
    *,
    is_flat: bool,
) -> Rule | None:
    """Build the early exit.

    Parameters
    ----------
    config
        The group.
    experts
        The pool.
    embed_by
        Makes what embeds texts by an expert's checkpoint.
    is_flat
        Whether the pipeline is the paper's.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if "_target_" not in config:
        is_agreement = section(config, ExitSection, "exit").name == "auto" and not is_flat
        return Majority(name="agreement", scope=Scope.NODE, order=Order.SLOT) if is_agreement else None
    settings = dict(config)
    pool = {expert.name: expert for expert in experts}
    embedder = settings.pop("embedder", None)
    if asks_embeddings(settings):
        require(embedder in pool, "exit.embedder", f"with similarity=embeddings one of the pool {list(pool)}", embedder)
        settings["embed"] = embed_by(pool[embedder])
    made: Rule = make(settings, "exit")
    require(made.is_exit, "exit.scope", "node or question", made.scope)
    return made


def asks_embeddings(config: Mapping[str, Any]) -> bool:
    """Tell whether an exit compares texts."""
    return config.get("similarity") == Similarity.EMBEDDINGS


def no_embeddings(expert: Expert) -> Embed:
    """Refuse to embed where nothing is written.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        "exit.similarity must be answers where calls have no texts, got embeddings: only backend=vllm in live mode "
        "embeds what was written"
    )
