"""What a plan's sparse KV caches are believed to cost, in words for its notes."""

from collections.abc import Iterator, Mapping

from mosaic.planning.ilp.choices import Choices


def kv_notes(choices: Choices, counts: Mapping[int, int]) -> Iterator[str]:
    """Say which KV caches were chosen and what that costs, with its bounds and its source; nothing without a choice.

    Parameters
    ----------
    choices, counts
        What could be chosen, and the calls of each option that is used.
    """
    if not choices.has_variants:
        return
    num_calls = sum(choices.num_calls)
    lost = low = high = 0.0
    sources: dict[str, None] = {}
    for m, name in enumerate(choices.names):
        served: dict[str, int] = {}
        for o in choices.of_expert[m]:
            variant, number = choices.options[o].variant, counts.get(o, 0)
            if variant is not None and number:
                label = f"{variant.budget_tokens:,} tokens"
                served[label] = served.get(label, 0) + number
                lost += number * variant.accuracy_cost_frac
                low += number * variant.low_frac
                high += number * variant.high_frac
                sources[variant.source] = None
        if served:
            shown = ", ".join(f"{number:,} calls with a KV budget of {label}" for label, number in served.items())
            yield f"{name}: {shown}, of {choices.num_calls[m]:,}"
    accepted = f"{choices.accepted_kv_loss_frac:.2%} of the right answers accepted"
    if not sources:
        yield f"no sparse KV cache pays for itself: {accepted}"
        return
    yield (
        f"sparse KV caches: {accepted}, {lost / num_calls:.2%} expected, {low / num_calls:.2%} to "
        f"{high / num_calls:.2%} at the bounds ({', '.join(sources)})"
    )
