"""Values that all packages share: the batch, the machines, plans, results. Imports nothing else of mosaic."""

from mosaic.core.cluster import Cluster, Gpu, Worker, uniform_cluster
from mosaic.core.errors import BackendError, InfeasibleError, MosaicError, PlanError, ProfileError
from mosaic.core.plan import Plan, Session
from mosaic.core.results import CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import AnswerKind, Call, CallKey, Expert, Family, ModelShape, Question, SparseKv, Workload

__all__ = [
    "AnswerKind",
    "BackendError",
    "Call",
    "CallKey",
    "CallRecord",
    "CallStatus",
    "Cluster",
    "Expert",
    "Family",
    "Gpu",
    "InfeasibleError",
    "ModelShape",
    "MosaicError",
    "Plan",
    "PlanError",
    "ProfileError",
    "Question",
    "RunResult",
    "Session",
    "SessionRecord",
    "SparseKv",
    "Worker",
    "Workload",
    "uniform_cluster",
]
