"""What disturbed a run, in words: its times are then not those of its policy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from mosaic.core.addition import add_in_order


def describe_disturbances(summary: Mapping[str, Any]) -> str:
    """Say what disturbed a run, by its summary.json; empty: nothing, or an older version wrote it and did not say.

    Examples
    --------
    >>> describe_disturbances({"resumptions": [{"ts": 41.2, "pause_s": 60.0}], "lost_workers": []})
    'resumed once (at 41.2 s, after a pause of 60.0 s)'
    """
    resumed, lost = summary.get("resumptions") or (), summary.get("lost_workers") or ()
    parts = [f"resumed {_resumptions(resumed)}"] if resumed else []
    if lost:
        named = ", ".join(f"{loss['worker']} at {loss['ts']:,.1f} s" for loss in lost)
        parts.append(f"lost worker{'s' if len(lost) > 1 else ''} {named}")
    return " and ".join(parts)


def _resumptions(resumed: Sequence[Mapping[str, Any]]) -> str:
    pauses = [one["pause_s"] for one in resumed]
    unknown = any(pause is None for pause in pauses)
    after = "after a pause that is not known" if unknown else f"after a pause of {add_in_order(pauses):,.1f} s"
    if len(resumed) == 1:
        return f"once (at {resumed[0]['ts']:,.1f} s, {after})"
    return f"{len(resumed)} times (the last at {resumed[-1]['ts']:,.1f} s, {after}{'' if unknown else ' in all'})"
