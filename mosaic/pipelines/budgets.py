"""Budgets of tokens: where a call is cut, and from where on the last call of a question is not waited for.

NOTE: the hedge. Where all other calls of the first layer have ended within their hedges, and leave open what the gate
says, a call that writes more than its hedge is late. What the late call says still counts where the gate accepts the
votes with it; the aggregator reads the others only. So what can come of a question follows from its calls' lengths and
answers, and from the schedule alone which of the two it is: a calibration can count both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mosaic.core.checks import AtLeast1, checked
from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName

LEAST_HEDGED = 3
"""Calls of a question: fewer leave no two to aggregate."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("budgets: ")
class Budgets:
    """Tokens by node and expert; what is not named has no budget."""

    cut_tokens: Mapping[NodeName, Mapping[ExpertName, AtLeast1]] = field(default_factory=dict)
    """A call that would write more is cut there: it has no vote, and where it aggregates the vote stands.

    A response that is left alone stands too.
    """
    hedge_tokens: Mapping[ExpertName, AtLeast1] = field(default_factory=dict)
    """Of the first layer: a call that writes more is late."""

    def __bool__(self) -> bool:
        """Whether anything has a budget."""
        return bool(self.cut_tokens or self.hedge_tokens)

    def limit_of(self, call: Call) -> int | None:
        """Most tokens that a call may write; None: as many as its expert may."""
        return self.cut_tokens.get(call.key.node, {}).get(call.expert)

    def is_in_time(self, record: CallRecord | None) -> bool:
        """Tell whether a call has finished, and within its hedge."""
        if record is None or record.status is not CallStatus.FINISHED:
            return False
        hedge = self.hedge_tokens.get(record.expert)
        return hedge is None or record.output_tokens <= hedge

    def straggler(self, expert_of: Mapping[CallKey, ExpertName], done: Inputs) -> CallKey | None:
        """Find the only one of some calls that has not finished in time; None: there is none, or it has no hedge."""
        if not self.hedge_tokens or len(expert_of) < LEAST_HEDGED:
            return None
        late = [key for key in expert_of if not self.is_in_time(done.get(key))]
        return late[0] if len(late) == 1 and expert_of[late[0]] in self.hedge_tokens else None


def cut_at(experts: Sequence[Expert], tokens: int) -> dict[ExpertName, int]:
    """Give a budget to the experts that may write more.

    Examples
    --------
    >>> cut_at((), 100)
    {}
    """
    return {expert.name: tokens for expert in experts if expert.max_output_tokens > tokens}


def cut_record(record: CallRecord, budgets: Budgets) -> CallRecord:
    """Give what would have become of a call that ran whole, had it been cut where its budget ends."""
    limit = budgets.limit_of(Call(record.key, record.expert, record.prompt_tokens))
    if record.status is not CallStatus.FINISHED or limit is None or record.output_tokens <= limit:
        return record
    return record._replace(status=CallStatus.CUT, output_tokens=limit, answer=None, visible_tokens=0)
