"""Defines budgets of tokens: where a call is cut, and after how many tokens a question's last call is not waited for.

NOTE: the hedge. Suppose all other calls of the first layer have ended within their hedges, and their votes do not
settle the question. Then a call that writes more than its hedge is a straggler. Its vote still counts if the gate
accepts the votes including it; the aggregator reads only the others. So the lengths and answers of a question's calls
determine the possible outcomes, and only the schedule decides between them: a calibration can count both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from mosaic.core.checks import AtLeast1, checked
from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName

LEAST_HEDGED = 3
"""Calls of a question: with fewer, there would be fewer than two left to aggregate."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("budgets: ")
class Budgets:
    """Budgets in tokens by node and expert; those without an entry have no budget."""

    cut_tokens: Mapping[NodeName, Mapping[ExpertName, AtLeast1]] = field(default_factory=dict)
    """A call that would write more is cut there: it has no vote; if it aggregates, the vote becomes the answer.

    A single remaining response becomes the answer too.
    """
    hedge_tokens: Mapping[ExpertName, AtLeast1] = field(default_factory=dict)
    """For the first layer: a call that writes more is a straggler."""

    def __bool__(self) -> bool:
        """Whether there is any budget."""
        return bool(self.cut_tokens or self.hedge_tokens)

    def limit_of(self, call: Call) -> int | None:
        """Most tokens that a call may write; None: the limit of its expert."""
        return self.cut_tokens.get(call.key.node, {}).get(call.expert)

    def is_in_time(self, record: CallRecord | None) -> bool:
        """Return whether a call has finished within its hedge."""
        if record is None or record.status is not CallStatus.FINISHED:
            return False
        hedge = self.hedge_tokens.get(record.expert)
        return hedge is None or record.output_tokens <= hedge

    def straggler(self, expert_of: Mapping[CallKey, ExpertName], done: Inputs) -> CallKey | None:
        """Find the only call that has not finished in time; None: there is none or several, or it has no hedge."""
        if not self.hedge_tokens or len(expert_of) < LEAST_HEDGED:
            return None
        late = [key for key in expert_of if not self.is_in_time(done.get(key))]
        return late[0] if len(late) == 1 and expert_of[late[0]] in self.hedge_tokens else None


def cut_at(experts: Sequence[Expert], tokens: int) -> dict[ExpertName, int]:
    """Return the budget of each expert that may write more than it.

    Examples
    --------
    >>> cut_at((), 100)
    {}
    """
    return {expert.name: tokens for expert in experts if expert.max_output_tokens > tokens}


def cut_record(record: CallRecord, budgets: Budgets) -> CallRecord:
    """Return the record of a whole call as it would be if its budget had cut it."""
    limit = budgets.limit_of(Call(record.key, record.expert, record.prompt_tokens))
    if record.status is not CallStatus.FINISHED or limit is None or record.output_tokens <= limit:
        return record
    return replace(record, status=CallStatus.CUT, output_tokens=limit, answer=None, visible_tokens=0)
