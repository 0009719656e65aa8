"""Outcomes a caller acts on; bad input is a plain ``ValueError`` or ``TypeError``."""


class MosaicError(Exception):
    """Base of the errors that end a command with a message instead of a traceback."""


class InfeasibleError(MosaicError):
    """No plan exists for the problem under the scheduler's limits; the message says why."""


class PlanError(MosaicError):
    """A plan does not fit the problem it is meant for."""


class BackendError(MosaicError):
    """A backend could not run a plan."""


class FatalEngineError(BackendError):
    """An engine met what no other try and no other call will heal, such as a bad key: its worker serves nothing."""


class OutageError(BackendError):
    """A server does not serve now and may serve later; others can serve its calls meanwhile."""

    def __init__(self, cause: str, wait_s: float = 0.0) -> None:
        super().__init__(cause)
        self.wait_s = wait_s
        """The server asks for so much time."""


class DisturbedSweepError(BackendError):
    """Too many sessions of a sweep were interrupted to price an expert by the others: it must be measured anew."""


class ProfileError(MosaicError):
    """A profile lacks an entry that pricing needs."""


class InUseError(MosaicError):
    """Another command works in the folder; it is not disturbed."""


class RunFolderError(MosaicError):
    """A run folder cannot be written or read, or holds the results of another configuration."""
