"""experiments/measure_profile.py: the experts' profile, and the aggregator's where it is asked for."""

from pathlib import Path

import pytest

from experiments.measure_profile import main, split_arguments
from mosaic.config.job import simulated_job
from mosaic.planning.profiles import load_profile
from mosaic.runtime.run import measure

SMALL = ["workload=gpqa", "profile.sweep.shard_sizes=[8,16]", "profile.sweep.num_repeats=1"]


def test_both_profiles_are_written_and_can_be_used(tmp_path: Path) -> None:
    experts, aggregator = tmp_path / "experts.json", tmp_path / "aggregator.json"
    main([*SMALL, "aggregator=auto", f"out={experts}", f"aggregator_out={aggregator}"])
    assert {entry.expert for entry in load_profile(experts).entries} == {"LlamaR1", "QwenR1", "Gemma", "Exaone"}
    assert [(entry.expert, entry.tp_degree) for entry in load_profile(aggregator).entries] == [
        ("QwenR1", 4), ("QwenR1", 1),
    ]  # fmt: skip
    job, _ = simulated_job(["workload=gpqa", f"profile.path={experts}", f"profile.aggregator_path={aggregator}"])
    assert job.profile == load_profile(experts)
    assert job.upper_profile == load_profile(aggregator)
    assert set(measure(job).values()) == {job.profile, job.upper_profile}, "what is given is not measured again"


def test_the_aggregators_profile_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    main([*SMALL, f"out={tmp_path / 'experts.json'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["experts.json"]


def test_an_aggregators_profile_needs_an_aggregator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="aggregator_out must be left out with aggregator=none"):
        main([*SMALL, "aggregator=none", f"out={tmp_path / 'a.json'}", f"aggregator_out={tmp_path / 'b.json'}"])


@pytest.mark.parametrize("arguments", [["out=a", "out=b"], ["out="], ["out=a", "aggregator_out="]])
def test_files_are_named_once(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="expected overrides and one"):
        split_arguments(arguments)


def test_an_output_is_needed() -> None:
    with pytest.raises(ValueError, match="one out=FILE.json"):
        main(SMALL)
