"""Values that all packages share: the batch, the machines, plans, results. Imports no other package of mosaic."""

from mosaic.core.cluster import uniform_cluster
from mosaic.core.workload import AnswerKind, Call, CallKey, Expert, ModelShape, Question, Workload

__all__ = ["AnswerKind", "Call", "CallKey", "Expert", "ModelShape", "Question", "Workload", "uniform_cluster"]
