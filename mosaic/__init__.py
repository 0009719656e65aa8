"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from importlib.metadata import PackageNotFoundError, version

from mosaic.runtime.job import Job
from mosaic.runtime.run import plan, run

try:
    __version__ = version("mosaic-moa")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+checkout"

__all__ = ["Job", "__version__", "plan", "run"]
