"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.runtime.job import Job
    from mosaic.runtime.run import plan, run

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        """Import what the package gives out when it is first used: `mosaic --help` needs none of it."""
        if name == "__version__":
            return _version()
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("mosaic.runtime.job" if name == "Job" else "mosaic.runtime.run"), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mosaic-moa")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+checkout"


__all__ = ["Job", "__version__", "plan", "run"]
