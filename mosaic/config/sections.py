"""The sections of the configuration: their keys, types and limits, found wrong by one conversion."""

import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from mosaic.runtime.job import ProfileSource, Reaction

_Kind = TypeVar("_Kind", bound="Section")

AtLeast0 = Annotated[int, Meta(ge=0)]
AtLeast1 = Annotated[int, Meta(ge=1)]
LARGEST = 1e300
"""Finite numbers are below it."""
Above0 = Annotated[float, Meta(gt=0, lt=LARGEST)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Name = Annotated[str, Meta(pattern=r"\S")]
Group = Mapping[str, Any]
"""What names what it makes by its _target_, or holds entries by names of the user's own."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of the configuration."""


class PlanSection(Section, frozen=True):
    """Plans that are there already."""

    path: Name | None = None


class ProfileSection(Section, frozen=True):
    """What is known of lengths and costs, or how it is measured."""

    seed: AtLeast0
    length_error: Annotated[float, Meta(ge=1, lt=LARGEST)]
    source: ProfileSource
    sweep: Group
    path: Name | None = None
    aggregator_path: Name | None = None
    store: Name | None = None
    max_batch_frac: Above0 | None = None


class PoolSection(Section, frozen=True):
    """The experts."""

    experts: Group
    name: str | None = None
    aggregator: str | None = None


class PromiseSection(Section, frozen=True, kw_only=True):
    """What budgets and hedge may cost, and what they are calibrated on: the first fields of ``Promised``."""

    calibration: Name | None = None
    accepted_loss_frac: Share
    risk_frac: Annotated[float, Meta(gt=0, lt=1)]
    fit_frac: Share


class PipelineSection(Section, frozen=True):
    """What is called, in which order, and what reacts while it runs: as a list, or by a switch each."""

    barrier: bool
    nodes: Group | None = None
    reactions: list[Reaction] = []
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
        """What is listed, and what is switched on."""
        return frozenset(self.reactions) | {reaction for reaction in Reaction if self._switches_on(reaction)}

    def _switches_on(self, reaction: Reaction) -> bool:
        return not self.barrier if reaction is Reaction.NO_BARRIER else bool(getattr(self, switch(reaction)))


def switch(reaction: Reaction) -> str:
    """Return the key of ``pipeline`` that is a reaction's own."""
    return {Reaction.NO_BARRIER: "barrier", Reaction.PREFILL: "prefill_ahead"}.get(reaction, reaction.value)


class NodeSection(Section, frozen=True):
    """A node of a pipeline of the user's own."""

    experts: list[str] | None = None
    after: Any = ()
    when: Any = None
    role: Any = None
    min_output_tokens: Any = None


class TopologySection(Section, frozen=True):
    """Layers of agents."""

    min_output_tokens: AtLeast1
    layers: list[AtLeast1 | list[str]] | None = None
    fan_in: int | list[int | None] | None = None
    name: str | None = None


class ExitSection(Section, frozen=True):
    """An early exit without settings."""

    name: Literal["auto", "never"]


class NoAggregatorSection(Section, frozen=True):
    """The experts' stage alone."""

    name: Literal["none"]


Degree = Annotated[int, Meta(ge=1)] | Annotated[str, Meta(pattern=r"^\d+$")]
"""Overrides by a dotted name make a text of a number."""


class AggregatorSection(Section, frozen=True):
    """Who merges answers, and how it may be placed."""

    name: Name
    tp_degrees: Annotated[list[AtLeast1], Meta(min_length=1)]
    min_output_tokens: AtLeast1
    expert: str | None = None
    scheduler_by_degree: dict[Degree, Literal["data_parallel"]] | None = None
    costs: Literal["affine"] | None = None
    comparison: Name | None = None


class RaySection(Section, frozen=True):
    """The machines of a Ray cluster; of a cluster that was found also how many workers each has."""

    name: Name
    address: Name
    cpus_per_worker: Above0
    num_workers: AtLeast1 | None = None
    host_sizes: tuple[int, ...] = ()


class MixedClusterSection(Section, frozen=True):
    """Workers of several kinds."""

    name: Name
    workers: dict[str, AtLeast1]
    kinds: Group


class AnswersSection(Section, frozen=True):
    """Parameters of simulated answers, each with its source."""

    mean_ability: Any
    discrimination: Any
    distractor_std: Any
    length_loading: Any
    aggregator_gain: Any
    deference: Any
    aggregator_length_loading: Any
    ability_by_expert: Group
    visible_tokens: Any
    kv_loss_frac: dict[int | str, Any] | None = None


class WorldSection(Section, frozen=True):
    """What only a simulation knows."""

    output_tokens: Any = None
    length_scale: Any = None
    merged_tokens: Group | None = None
    answers: AnswersSection | None = None
    question_seed: AtLeast0 = 0


class Sections(Section, frozen=True):
    """All of a run's configuration; a ``Group`` is converted by what its other keys choose."""

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


class Mode(StrEnum):
    """Where a response comes from."""

    LIVE = "live"
    """The model reads the real prompt and decides what to write."""
    REPLAY = "replay"
    """The model writes as many tokens as the simulated world says, and the world says what they mean."""


class VllmSection(Section, frozen=True):
    """Engines of vLLM."""

    mode: Mode
    device: Literal["auto", "gpu", "cpu"]
    checkpoints: Name
    confidence: bool
    num_calibration_questions: AtLeast1
    engine: Group
    patience: Group


class EndpointSection(Section, frozen=True):
    """Servers that are running."""

    endpoints: list[Group]
    max_in_flight: AtLeast1
    patience: Group


def section(config: object, kind: type[_Kind], label: str) -> _Kind:
    """Convert a group of the configuration.

    Parameters
    ----------
    config
        The group, resolved.
    kind
        Its keys, types and limits.
    label
        Its name, for messages; empty: the whole configuration.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), config, kind, label) from None


_MESSAGE = re.compile(r"(?P<problem>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?", re.S)
_KINDS = {
    "int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list",
    "object": "a group of the configuration, with keys", "null": "null",
}  # fmt: skip
_LIMITS = {">=": "at least", ">": "above", "<=": "at most", "<": "below"}


def _explained(message: str, config: object, kind: type[Section], label: str) -> ValueError | TypeError:
    """Say what is wrong with a group in our words."""
    found = _MESSAGE.fullmatch(message)
    assert found is not None
    problem, path = found["problem"], found["path"] or ""
    name = ".".join(part for part in (label, path) if part)
    words = re.findall(r"`([^`]*)`", problem)
    owner, rest = _section_at(kind, path)
    if problem.startswith("Object "):  # it contains an unknown field, or lacks one
        key = f"{name}.{words[0]}".lstrip(".")
        if "missing" in problem:
            return ValueError(f"{key} must be given, got None")
        keys = [*owner.__struct_fields__]
        rule = f"one of {keys} there" if keys else "left out: there are none there"
        value = _value_at(config, f"{path}.{words[0]}")
        return ValueError(f"{key} must be a key of the configuration, {rule}, got {value!r}")
    if rest.endswith("[...]"):
        key = rest.removesuffix("[...]")
        path = path.removesuffix("[...]")
        entry = _wrong_entry(_value_at(config, path), get_type_hints(owner, include_extras=True)[key])
        name, path = f"{name.removesuffix('[...]')}.{entry}", f"{path}.{entry}"
    value = _value_at(config, path)
    if problem.startswith("Invalid enum value"):
        return ValueError(f"{name} must be {_choices(owner, rest.partition('[')[0])}, got {value!r}")
    if "matching regex" in problem:
        return ValueError(f"{name} must be a non-empty string, got {value!r}")
    if limit := re.search(r"(>=|<=|>|<) (\S+)$", problem):
        rule = "finite" if float(limit[2]) == LARGEST else f"{_LIMITS[limit[1]]} {float(limit[2]):g}"
        rule = "at least one value" if "of length" in problem else rule
        return ValueError(f"{name} must be {rule}, got {value!r}")
    kinds = [_KINDS.get(word, word) for word in words[0].split(" | ")]
    return TypeError(f"{name} must be {' or '.join(kinds)}, got {value!r}")


def _section_at(kind: type[Section], path: str) -> tuple[type[Section], str]:
    """Find the innermost section that a path leads into, and what is left of the path there."""
    first, _, rest = path.partition(".")
    hint = get_type_hints(kind).get(first)
    for inner in (hint, *get_args(hint)):
        if isinstance(inner, type) and issubclass(inner, Section):
            return _section_at(inner, rest)
    return kind, path


def _wrong_entry(entries: object, kind: Any) -> object:
    """Name the entry of a group that cannot be converted."""
    assert isinstance(entries, Mapping)
    for name, entry in entries.items():
        try:
            msgspec.convert({name: entry}, kind)
        except msgspec.ValidationError:
            return name
    return "..."


def _value_at(config: object, path: str) -> object:
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(config, Mapping):
            config = config.get(part, config.get(int(part)) if part.isdigit() else None)
        elif isinstance(config, list | tuple) and part.isdigit():
            config = config[int(part)]
    return config


def _choices(kind: type[Section], key: str) -> str:
    """List the values that a key may have."""
    hints = get_type_hints(kind)
    parts = [hints[key]]
    values: list[str] = []
    while parts:
        part = parts.pop()
        if isinstance(part, type) and issubclass(part, Enum):
            values += [member.value for member in part]
        elif get_origin(part) is Literal:
            values += get_args(part)
        elif get_origin(part) in (Union, UnionType, dict, list):
            parts += get_args(part)
    own = get_args(hints[key])
    is_nullable = type(None) in own and not any(get_origin(part) is dict for part in own)
    return f"null or one of {values}" if is_nullable else f"one of {values}"


def require_group(value: object, field: str) -> None:
    """Check that a group of the user's own names has keys."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{field} must be a group of the configuration, with keys, got {value!r}")
