"""What was prefilled ahead of time, and what came of it: for summary.json."""

from typing import Any

from mosaic.core.results import RunResult


def prefill_report(result: RunResult) -> dict[str, Any]:
    """Count the work ahead of calls, and how much of it a call has used; empty: there was none."""
    if not result.prefills:
        return {}
    prompts = {(record.key.question, record.key.node, record.session) for record in result.prefills}
    calls = [call for call in result.calls if (call.key.question, call.key.node, call.session) in prompts]
    computed, reused = (
        sum(record.computed_tokens for record in result.prefills),
        sum(call.cached_tokens for call in calls),
    )
    report = {
        "num_prefills": len(result.prefills),
        "computed_tokens": computed,
        "reused_tokens": reused,
        "wasted_tokens": max(0, computed - reused),
    }
    return {"prefill_ahead": report}
