"""Errors that a caller handles; bad input is a plain ``ValueError`` or ``TypeError``."""


class MosaicError(Exception):
    """Base of the errors that end a command with a message instead of a traceback."""


class InfeasibleError(MosaicError):
    """No plan exists for the problem under the scheduler's limits; the message says why."""


class PlanError(MosaicError):
    """A plan does not fit the problem it is meant for."""


class BackendError(MosaicError):
    """A backend could not run a plan."""


class FatalEngineError(BackendError):
    """An error of an engine that no retry and no other call can avoid, such as a bad key: its worker is lost."""


class OutageError(BackendError):
    """A server is down and may come back; other servers can serve its calls in the meantime."""

    def __init__(self, cause: str, wait_s: float = 0.0) -> None:
        super().__init__(cause)
        self.wait_s = wait_s
        """Seconds to wait, as the server demands."""


class DisturbedSweepError(BackendError):
    """Too many sessions of a sweep were interrupted to price an expert by the rest: it must be measured again."""


class ProfileError(MosaicError):
    """A profile lacks an entry that pricing needs."""


class InUseError(MosaicError):
    """Another command uses the folder; this one stops and leaves it unchanged."""


class RunFolderError(MosaicError):
    """A run folder cannot be written or read, or holds results of another configuration."""
