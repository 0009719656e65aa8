"""Chooses budgets, and a gate's threshold with them, whose joint loss is promised.

NOTE: the idea. Part of the calibration questions, those that certify nothing, lay out a path: of all settings of
threshold and budgets those that no other beats in both safety and speed, the safest first. The other questions walk it,
testing each setting at the full risk, up to the first that fails (fixed-sequence testing, see `risk_control`). The path
does not depend on them, so with probability of at least 1 - risk no setting that passed loses more than is accepted.

References
----------
Laufer-Goldshtein, Fisch, Barzilay and Jaakkola, "Efficiently controlling multiple risks with Pareto testing", ICLR
2023, arXiv 2210.07913.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mosaic.pipelines.gates.loss_table import Setting
from mosaic.pipelines.gates.risk_control import betting_p_values, smallest_promise_frac

LEVELS = tuple(round(2 ** (exponent / 2)) for exponent in range(30, 7, -1))
"""Of tokens, from 32,768 down to 11; fixed before any question is seen."""
AGGREGATE_SHARE = 2
"""An aggregation may write so many times less than a proposal: a chain of the two is bounded."""
HEDGE_SHARES = (1, 2, 4, 8, 16)
"""And so may a call that is hedged, each of them."""
FULL_STEP = 3.0
"""Assumed: a decode step of a full batch takes so many times that of the few sequences that are left at the end."""
LEAST_GAIN_FRAC = 0.02
"""Of the steps: a path with steps smaller than this only offers more chances to fail."""


class Questions(Protocol):
    """Calibration questions, as ``LossTable`` has them."""

    def __len__(self) -> int:
        """Count them."""

    def losses(self, setting: Setting) -> NDArray[np.int8]:
        """Compute what each loses at most."""

    def written_tokens(self, setting: Setting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Estimate what each writes in all, and one call after the other."""


class Kinds(NamedTuple):
    """What is budgeted."""

    cuts: bool
    hedges: bool


class Batch(NamedTuple):
    """What decides whether long chains or many tokens take the time."""

    num_questions: int
    num_running: int
    """Calls that run at once at most."""


class SettingTest(NamedTuple):
    """A setting that was tested; the mean is over all questions that certify."""

    setting: Setting
    mean_loss_frac: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChoice:
    """The last setting of the path that passed, and the tests up to the first that failed."""

    setting: Setting | None
    """None: nothing can be promised."""
    num_certify: int
    accepted_loss_frac: float
    risk_frac: float
    promise_frac: float | None
    """Smallest loss that the questions could have promised for it, or else for the first; None: the path is empty."""
    tests: tuple[SettingTest, ...]

    def notes(self) -> tuple[str, ...]:
        """Say what is promised, or why nothing is."""
        accepted = f"a loss of at most {100 * self.accepted_loss_frac:.4g} pp against always aggregating"
        promise = f"{accepted} at {100 * (1 - self.risk_frac):.4g}% confidence"
        if self.setting is None:
            why = "no budget is expected to earn anything"
            if self.promise_frac is not None:
                could = ceil(1000 * self.promise_frac - 1e-4) / 10  # rounded up, as a promise must be
                why = f"{self.num_certify} questions cannot promise {promise} (they could promise {could:.1f} pp)"
            return (f"budgets: {why}: there are none",)
        threshold, *tokens = self.setting
        named = zip(("proposals", "aggregations", "hedge"), tokens, strict=True)
        parts = [f"{name} {count:,} tokens" for name, count in named if count is not None] or ["none"]
        skips = "nothing is skipped" if threshold is None else f"threshold {threshold:.4g}"
        return (f"budgets: {', '.join(parts)}; {skips}; {self.num_certify} questions promise {promise}",)

    def report(self) -> dict[str, Any]:
        """List the numbers behind the promise, for summary.json."""
        return {
            **(self.setting or Setting(None))._asdict(),
            "accepted_loss_frac": self.accepted_loss_frac,
            "risk_frac": self.risk_frac,
            "num_certify": self.num_certify,
            "promise_frac": self.promise_frac,
            "tests": [
                {**setting._asdict(), "mean_loss_frac": mean, "p_value": p_value}
                for setting, mean, p_value in self.tests
            ],
        }


def settings_of(thresholds: Sequence[float | None], kinds: Kinds, *, is_gate_chosen: bool) -> tuple[Setting, ...]:
    """List all settings; those without budgets only where the gate's threshold is to be chosen too."""
    budgets: list[tuple[int | None, ...]] = []
    for level in LEVELS:
        cut = (level, max(1, level // AGGREGATE_SHARE)) if kinds.cuts else (None, None)
        hedges = [max(1, level // share) for share in HEDGE_SHARES] if kinds.cuts else [level]
        budgets += [(*cut, hedge) for hedge in hedges] if kinds.hedges else []
        budgets += [(*cut, None)] if kinds.cuts else []
    without = [Setting(threshold) for threshold in thresholds if threshold is not None and is_gate_chosen]
    return (*without, *(Setting(threshold, *tokens) for threshold in thresholds for tokens in budgets))


def path_of(
    fit: Questions, settings: Sequence[Setting], batch: Batch, accepted_loss_frac: float
) -> tuple[Setting, ...]:
    """Order settings from safe to fast, without those that are beaten in both.

    Safety is by how many standard errors the mean loss is below the accepted one, one more lost question counted.
    """

    def margin(setting: Setting) -> float:
        lost, num = fit.losses(setting), len(fit) + 1
        mean, square = (float(lost.sum()) + 1) / num, (float(np.abs(lost).sum()) + 1) / num
        return (accepted_loss_frac - mean) / sqrt(square - mean**2)

    priced = [(-margin(setting), steps(fit, setting, batch), setting) for setting in settings]
    path: list[Setting] = []
    least = steps(fit, Setting(None), batch)
    for _, number, setting in sorted(priced, key=lambda one: one[:2]):
        if number < (1 - LEAST_GAIN_FRAC) * least:
            path.append(setting)
            least = number
    return tuple(path)


def choose_budgets(
    certify: Questions, path: Sequence[Setting], *, accepted_loss_frac: float, risk_frac: float
) -> BudgetChoice:
    """Walk a path as far as it can be promised.

    Parameters
    ----------
    certify
        Calibration questions that did not lay out the path, in an order that does not depend on their answers.
    path
        Settings in the order in which they are tested.
    accepted_loss_frac, risk_frac
        Mean loss to be promised against always aggregating, and the probability that the promise is broken.
    """
    taken, tests = walk(certify, path, accepted_loss_frac, risk_frac)
    told = taken or (tests[0].setting if tests else None)
    return BudgetChoice(
        setting=taken,
        num_certify=len(certify),
        accepted_loss_frac=accepted_loss_frac,
        risk_frac=risk_frac,
        promise_frac=None if told is None else smallest_promise_frac(certify.losses(told), risk_frac),
        tests=tests,
    )


def walk(
    certify: Questions, path: Sequence[Setting], accepted_loss_frac: float, risk_frac: float
) -> tuple[Setting | None, tuple[SettingTest, ...]]:
    """Test the settings of a path up to the first that fails; gives the last that passed, and all tests."""
    tests: list[SettingTest] = []
    taken: Setting | None = None
    for setting in path:
        lost = certify.losses(setting)
        tests.append(SettingTest(setting, float(lost.mean()), float(betting_p_values(lost, accepted_loss_frac))))
        if tests[-1].p_value > risk_frac:
            break
        taken = setting
    return taken, tuple(tests)


def steps(table: Questions, setting: Setting, batch: Batch) -> float:
    """Estimate the decode steps of a batch: those of engines that are full, and those of its longest chain."""
    written, chain = table.written_tokens(setting)
    longest = float(np.quantile(chain, 1 - 1 / batch.num_questions))
    return FULL_STEP * batch.num_questions * float(written.mean()) / batch.num_running + longest
