"""Exits that accept what agents agree on: who would read them is not asked, and the others are cancelled."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mosaic.core.checks import require, require_number
from mosaic.pipelines.exits.exit import Exit, Meeting, Order, Scope, Verdict
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.gate import Gate, Majority


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Accepts an answer as soon as a share of the agents that somebody reads gave it, whatever the others say."""

    tau: float = 2 / 3
    """0.5 (excluded) to 1, compared as `Majority.tau` is: two of three, six of nine."""
    order: Order = Order.SLOT
    name: str = "agreement"
    _gate: Majority = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_number(self.tau, "exit.tau", above=0.5)
        require(self.tau <= 1, "exit.tau", "at most 1", self.tau)
        object.__setattr__(self, "order", checked_order(self.order))
        object.__setattr__(self, "_gate", Majority(tau=self.tau))

    @property
    def scope(self) -> Scope:
        return Scope.NODE

    @property
    def reads_confidence(self) -> bool:
        return False

    def load(self) -> None:
        """Have nothing to load."""

    def judge(self, meeting: Meeting) -> Verdict | None:
        return accept_settled(self._gate, meeting)

    def notes(self) -> Sequence[str]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedAtRisk:
    """Accepts what the whole first layer agrees on, as far as a promised loss allows, and asks nobody above it.

    The promise is the calibrated gate's: against asking everybody, the mean loss of accuracy is at most the accepted
    one, with probability of at least 1 - risk over calibration runs (``exit=never``).
    """

    gate: Calibrated
    order: Order = Order.SLOT
    name: str = "calibrated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", checked_order(self.order))

    @property
    def scope(self) -> Scope:
        return Scope.QUESTION

    @property
    def reads_confidence(self) -> bool:
        return False

    def load(self) -> None:
        """Have nothing to load."""

    def judge(self, meeting: Meeting) -> Verdict | None:
        return accept_settled(self.gate, meeting)

    def notes(self) -> Sequence[str]:
        return self.gate.notes()


def accept_settled(gate: Gate, meeting: Meeting) -> Verdict | None:
    """Accept what a gate accepts, as soon as no vote that is missing can change that."""
    if not meeting.order:
        return None
    partial = meeting.ballot()
    decision = gate.settled(partial)
    if decision is None:
        return None
    votes = partial.ballot.votes
    return Verdict(tuple(place for place in meeting.order if votes[place].answer == decision.answer), decision)


def checked_order(order: object) -> Order:
    """Read the order in which agents count.

    Raises
    ------
    ValueError
        If there is no such order.
    """
    allowed = [order.value for order in Order]
    require(order in allowed, "exit.order", f"one of {allowed}", order)
    return Order(str(order))


def calibrated_exit(
    *,
    calibration: str | Path,
    accepted_loss_frac: float,
    risk_frac: float,
    fit_frac: float,
    order: Order = Order.SLOT,
) -> AgreedAtRisk:
    """Calibrate an exit on the answers of a run in which everybody was asked; arguments as of `Calibrated`.

    Raises
    ------
    ValueError, TypeError
        As `Calibrated` does, naming the key of the exit.
    """
    try:
        gate = Calibrated(
            calibration=calibration, accepted_loss_frac=accepted_loss_frac, risk_frac=risk_frac, fit_frac=fit_frac
        )
    except (ValueError, TypeError) as error:
        raise type(error)(
            str(error).replace("gate.", "exit.").replace("gate=never", "exit=never gate=never")
        ) from error
    return AgreedAtRisk(gate=gate, order=order)


def calibrated_gate(rule: Exit | None) -> Calibrated | None:
    """Give what an early exit promises; None: nothing."""
    return rule.gate if isinstance(rule, AgreedAtRisk) else None
