"""Defines the sections of the configuration: keys, types and limits, all checked by one conversion."""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from mosaic.core.checks import AtLeast0, AtLeast1, Limit, Name, Positive, check_fields, require
from mosaic.runtime.job import ProfileSource, Reaction, Summary
from mosaic.runtime.sweep import Sweep

_Kind = TypeVar("_Kind")

Group = Mapping[str, Any]
"""A group that names its target in _target_, or holds entries under user-defined names."""
ShareBelow1 = Annotated[float, Limit(at_least=0, below=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSection:
    """Saved plans."""

    path: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSection:
    """Known lengths and costs, or how they are measured."""

    seed: AtLeast0
    length_error: Annotated[float, Limit(at_least=1)]
    source: ProfileSource
    sweep: Sweep
    path: Name | None = None
    aggregator_path: Name | None = None
    store: Name | None = None
    max_batch_frac: Positive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSection:
    """The experts."""

    experts: Group
    name: Name | None = None
    aggregator: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseSection:
    """Accepted loss of budgets and hedge, and their calibration: the first fields of ``Promised``."""

    calibration: Name | None = None
    accepted_loss_frac: ShareBelow1
    risk_frac: Annotated[float, Limit(above=0, below=1)]
    fit_frac: ShareBelow1


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSection:
    """The calls and their order, and the reactions during a run: as a list, or by one switch each."""

    barrier: bool
    nodes: Group | None = None
    reactions: tuple[Reaction, ...] = ()
    quorum: bool = False
    overlap: bool = False
    moves: bool = False
    prefill_ahead: bool = False
    forecast: bool = False
    replan: bool = False
    leave_one_out: bool = False
    count_tokens: bool = False
    budgets: Literal["calibrated"] | None = None
    hedge: Literal["calibrated"] | None = None
    promise: PromiseSection | None = None

    @property
    def wanted(self) -> frozenset[Reaction]:
        """The listed reactions, and those switched on."""
        return frozenset(self.reactions) | {reaction for reaction in Reaction if self._switches_on(reaction)}

    def _switches_on(self, reaction: Reaction) -> bool:
        return not self.barrier if reaction is Reaction.NO_BARRIER else bool(getattr(self, switch(reaction)))


def switch(reaction: Reaction) -> str:
    """Return the key of ``pipeline`` that is a reaction's own."""
    return {Reaction.NO_BARRIER: "barrier", Reaction.PREFILL: "prefill_ahead"}.get(reaction, reaction.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    """A node of a user's own pipeline."""

    experts: tuple[Name, ...] | None = None
    after: Any = ()
    when: Any = None
    role: Any = None
    min_output_tokens: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySection:
    """Layers of agents."""

    min_output_tokens: AtLeast1
    layers: tuple[Any, ...] | None = None
    fan_in: Any = None
    name: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorSection:
    """The aggregator, and its possible placements."""

    name: Name
    tp_degrees: tuple[AtLeast1, ...]
    min_output_tokens: AtLeast1
    expert: Name | None = None
    scheduler_by_degree: Mapping[int | str, Literal["data_parallel"]] | None = None
    """Convert text to a number: overrides by a dotted name are text."""
    costs: Literal["affine"] | None = None
    comparison: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySection:
    """The machines of a Ray cluster; for a cluster that was found also the workers of each machine."""

    name: Name
    address: Name
    cpus_per_worker: Positive
    num_workers: AtLeast1 | None = None
    host_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedClusterSection:
    """Workers of several kinds."""

    name: Name
    workers: Mapping[str, AtLeast1]
    kinds: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSection:
    """Settings of simulations only."""

    output_tokens: Any = None
    length_scale: Any = None
    merged_tokens: Group | None = None
    answers: Group | None = None
    question_seed: AtLeast0 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """A run's whole configuration; a ``Group`` is converted according to its other keys."""

    seed: AtLeast0
    question_seed: AtLeast0
    plan: PlanSection
    profile: ProfileSection
    workload: Group
    world: WorldSection
    pool: PoolSection
    backend: Group
    hardware: Group
    cluster: Group
    costs: Group
    scheduler: Group
    pipeline: PipelineSection
    topology: TopologySection
    exit: Group
    gate: Group
    aggregator: Group
    summary: Summary


def section(config: object, kind: type[_Kind], label: str = "") -> _Kind:
    """Convert a group of the configuration, and the groups in it.

    Parameters
    ----------
    config
        The group, resolved.
    kind
        A dataclass, with its keys, types and limits.
    label
        Its name, for messages; empty: the whole configuration.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    owner, known = f"{label}." if label else "", _types_of(cast(Hashable, kind))
    group = require_keys(config, label, known)
    for field in fields(kind):  # type: ignore[arg-type]
        is_needed = field.default is MISSING and field.default_factory is MISSING
        require(field.name in group or not is_needed, f"{owner}{field.name}", "given", None)
    made = kind(**{key: _converted(value, known[key], f"{owner}{key}") for key, value in group.items()})
    check_fields(made, owner)
    return made


@cache
def _types_of(kind: Hashable) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _converted(value: Any, hint: Any, label: str) -> Any:
    """Convert a section, or a list of sections, by its type; a type with entries must be a group."""
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else section(value, hint, label)
    kinds = get_args(hint)
    if get_origin(hint) is Mapping:
        require_group(value, label)
    elif get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_converted(entry, kinds[0], f"{label}[{number}]") for number, entry in enumerate(value))
    elif type(None) in kinds and value is not None:
        return _converted(value, kinds[0], label)
    return value


def keys_of(*kinds: type, unread: Collection[str]) -> list[str]:
    """List the fields of dataclasses, except those that are not part of the configuration."""
    return [each.name for kind in kinds for each in fields(kind) if each.name not in unread]


def require_keys(config: object, label: str, known: Collection[str]) -> Group:
    """Check that a group has only known keys."""
    group = require_group(config, label)
    for key, value in group.items():
        keys = f"one of {[*known]}" if known else "left out: there are none"
        name = f"{label}.{key}" if label else key
        require(key in known, name, f"a key of the configuration, {keys} there", value)
    return group


def by_number(group: Mapping[Any, Any], label: str, rule: str, *, at_least: int = 0) -> dict[int, Any]:
    """Read whole numbers as keys, each given once."""
    # NOTE: overrides by a dotted name make a text of a number.
    require(all(str(key).isdecimal() and int(key) >= at_least for key in group), label, rule, [*group])
    made = {int(key): entry for key, entry in group.items()}
    require(len(made) == len(group), label, "such that each number is given once", [*group])
    return made


def require_group(value: object, field: str) -> Group:
    """Check that a group has keys."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{field} must be a group of the configuration, with keys, got {value!r}")
    return value
