"""Loads given profiles: from a profile's file, or from the records of a finished run's folder."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mosaic.config.machines import has_kinds
from mosaic.config.sections import PipelineSection, ProfileSection, section
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, uniform_cluster
from mosaic.core.results import RunResult, SessionRecord
from mosaic.core.workload import Expert, ExpertName, NodeName
from mosaic.planning.profiles import Profile, load_profile
from mosaic.report.run_folder import read_config, read_summary
from mosaic.report.tables import read_calls, read_sessions
from mosaic.runtime.job import Job, Reaction
from mosaic.runtime.planner import NodePlacements
from mosaic.runtime.profiling import fit_run

COMPARED = {"backend", "cluster", "hardware", "pipeline", "pool"}
"""Groups of a run's configuration that the cost of its sessions depends on."""
SHARING = {"experts_per_gpu": 1, "keep": "nothing"}
"""Options of a backend by which sessions share a GPU, with their defaults."""
IDLING = {Reaction.MOVES, Reaction.OVERLAP, Reaction.NO_BARRIER}
"""Reactions by which calls leave sessions, or sessions wait for calls: their times are not those of their calls."""


def with_profiles(job: Job, given: ProfileSection, config: Mapping[str, Any]) -> Job:
    """Add the given profiles: a profile's file, or a run's folder.

    Raises
    ------
    ValueError
        If the folder's run is not complete, ran on other machines or does not price an expert.
    ProfileError, RunFolderError
        If a file cannot be read.
    """
    graph, upper = job.graph, job.graph.upper_nodes
    if given.path is not None:
        known = {expert.name: expert for expert in (*graph.experts, *job.experts)}
        called = [known[name] for name in dict.fromkeys(call.expert for call in graph.first_calls(job.workload))]
        profile = _profile("profile.path", given.path, config, job.cluster, called, graph.first_nodes)
        job = replace(job, profile=profile)
    if given.aggregator_path is not None:
        merging = [*{expert.name: expert for node in upper for expert in node.experts}.values()]
        nodes, path = [node.name for node in upper], given.aggregator_path
        profile = _profile("profile.aggregator_path", path, config, job.cluster, merging, nodes, in_waves=True)
        for node in upper:
            options = job.placements.get(node.name, NodePlacements()).placements
            for expert in node.experts:
                for degree in [option.tp_degree for option in options] or [expert.tp_degree]:
                    profile.entry(expert.name, job.cluster.workers[0].gpu.name, degree)
        job = replace(job, upper_profile=profile)
    return job


def _profile(
    key: str,
    path: str,
    config: Mapping[str, Any],
    cluster: Cluster,
    experts: Sequence[Expert],
    nodes: Collection[NodeName],
    *,
    in_waves: bool = False,
) -> Profile:
    """Read a profile's file, or fit a profile to the records of a run's folder."""
    folder = Path(path)
    if not folder.is_dir():
        return load_profile(path)
    summary = read_summary(folder)
    if summary is None:
        raise ValueError(f"{key} must be a profile's file, or the folder of a complete run, got {path!r}")
    _check_run(key, path, config, [expert.name for expert in experts])
    result = _result_of(folder, summary)
    workers = 1 + max((worker for session in result.sessions for worker in session.workers), default=0)
    ran_on = uniform_cluster(name=path, num_workers=workers, gpu=cluster.workers[0].gpu)
    profile = fit_run(experts, ran_on, result, f"run {path}", nodes, in_waves=in_waves)
    lacking = sorted({expert.name for expert in experts} - {entry.expert for entry in profile.entries})
    require(not lacking, key, f"a run with sessions of {lacking} in {list(nodes)} whose calls all finished", path)
    return profile


def _check_run(key: str, path: str, config: Mapping[str, Any], experts: Collection[ExpertName]) -> None:
    """Check that a run's sessions have the same costs: same machines, sharing and caches, without moved calls."""
    saved = read_config(path)
    require(saved.keys() >= COMPARED, key, f"the folder of a run, whose config.yaml has {sorted(COMPARED)}", path)
    require(saved["backend"]["name"] != "endpoint", key, "a run that placed its experts: servers price nothing", path)
    for place, group in (("its run", saved), ("this run", config)):
        require(
            not has_kinds(group["cluster"]),
            key,
            f"a profile's file where the cluster of {place} has several kinds",
            path,
        )
    name = config["hardware"].get("name")
    require(saved["hardware"].get("name") == name, key, f"a run on hardware={name}", path)
    for option, default in SHARING.items():
        own = config["backend"].get(option, default)
        require(saved["backend"].get(option, default) == own, key, f"a run with backend.{option}={own}", path)
    for expert in experts:
        own, its = (group["pool"]["experts"].get(expert) or {} for group in (config, saved))
        for setting in ("kv", "dp_attention"):
            is_alike = (its.get(setting) or None) == (own.get(setting) or None)
            require(is_alike, key, f"a run with the {setting} that {expert} has here", path)
    reactions = section(saved["pipeline"], PipelineSection, "pipeline").wanted & IDLING
    rule = f"a run without {', '.join(sorted(reactions))}, by which calls leave sessions or sessions wait for calls"
    require(not reactions, key, rule, path)


def _result_of(folder: Path, summary: Mapping[str, Any]) -> RunResult:
    """Read a run's records; sessions during which it was stopped count as interrupted."""
    stops = [one["ts"] for one in summary.get("resumptions") or ()]

    def interrupted(session: SessionRecord) -> SessionRecord:
        number = sum(session.load_start_ts <= ts <= session.end_ts for ts in stops)
        return replace(session, num_interruptions=number)

    sessions = tuple(map(interrupted, read_sessions(folder)))
    return RunResult(calls=read_calls(folder), sessions=sessions, num_workers=summary["num_workers"])
