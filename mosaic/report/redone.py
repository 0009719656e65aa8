"""What a run that goes on after an interruption does again, in words."""

from mosaic.core.events import Redone


def describe_redone(event: Redone) -> list[str]:
    """Say what of an interrupted run is done again, a line for each cause.

    Examples
    --------
    >>> for line in describe_redone(Redone(0.0, 1, {"Gemma": 40}, {"Qwen": 2})):
    ...     print(line)
    damaged or unfinished lines of the journal: 1. What they held is run again
    Gemma: its checkpoint or its engine's options have changed. Calls that had ended and are run again: 40
    Qwen: what it is asked has changed. Calls that had ended and are run again: 2
    """
    num = event.num_damaged
    causes = (
        ("its checkpoint or its engine's options have changed", event.num_changed),
        ("what it is asked has changed", event.num_outdated),
    )
    return [
        *([f"damaged or unfinished lines of the journal: {num:,}. What they held is run again"] if num else []),
        *(
            f"{expert}: {cause}. Calls that had ended and are run again: {num_calls:,}"
            for cause, num_by_expert in causes
            for expert, num_calls in num_by_expert.items()
        ),
    ]
