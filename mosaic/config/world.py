"""What only a simulation knows, from the group ``world``: true lengths and answers."""

from collections.abc import Mapping
from typing import Any

from mosaic.config.sections import AnswersSection, WorldSection, section
from mosaic.core.checks import require, require_count
from sim.world.answer_model import AnswerModel
from sim.world.length_sources import declared_parameter, length_distribution, length_distributions
from sim.world.world import SimulatedWorld

ANSWER_KEYS = (
    "mean_ability", "discrimination", "distractor_std", "length_loading", "aggregator_gain", "deference",
    "aggregator_length_loading",
)  # fmt: skip


def simulated_world(config: Mapping[str, Any]) -> SimulatedWorld:
    """Build what the group says.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    given = section(config, WorldSection, "world")
    answers, visible = answer_model(given.answers)
    return SimulatedWorld(
        lengths=length_distributions(given.output_tokens or {}, length_scale=given.length_scale),
        merged_lengths={
            name: length_distribution(entry, expert=name, key="world.merged_tokens")
            for name, entry in (given.merged_tokens or {}).items()
        },
        answers=answers,
        question_seed=given.question_seed,
        visible_tokens=visible,
    )


def answer_model(config: Mapping[str, Any] | None) -> tuple[AnswerModel | None, int]:
    """Build the answer model and the visible tokens; every parameter declares its source.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if config is None:
        return None, 0
    given = section(config, AnswersSection, "world.answers")
    values = {key: declared_parameter(getattr(given, key), f"world.answers.{key}") for key in ANSWER_KEYS}
    abilities = {
        name: declared_parameter(entry, f"world.answers.ability_by_expert.{name}")[0]
        for name, entry in given.ability_by_expert.items()
    }
    visible, _ = declared_parameter(given.visible_tokens, "world.answers.visible_tokens")
    require_count(visible, "world.answers.visible_tokens.value", at_least=1)
    try:
        model = AnswerModel(
            **{key: value for key, (value, _) in values.items()},
            ability_by_expert=abilities,
            kv_loss_frac=_kv_losses(given.kv_loss_frac or {}),
            source=values["mean_ability"][1],
        )
    except ValueError as error:
        raise ValueError(f"world.{error}") from error
    return model, visible


def _kv_losses(config: Mapping[int | str, Any]) -> dict[int, float]:
    """Read the share of right answers that is lost, by KV budget in tokens."""
    key = "world.answers.kv_loss_frac"
    # NOTE: overrides by a dotted name make a text of a number.
    require(all(str(name).isdecimal() for name in config), key, "by KV budgets in tokens", list(config))
    named = {int(name): entry for name, entry in config.items()}
    require(len(named) == len(config), key, "such that each budget is given once", list(config))
    return {budget: declared_parameter(entry, f"{key}.{budget}")[0] for budget, entry in named.items()}
