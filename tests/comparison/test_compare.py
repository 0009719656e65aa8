import csv
import json
import subprocess
import sys
from math import exp, log, sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mosaic.commands.compare import COLUMNS, OUTCOME_COLUMNS, SCALING_COLUMNS, default_baseline, in_columns
from mosaic.comparison.estimate import estimate, t_interval
from mosaic.comparison.pairing import compare_runs
from mosaic.comparison.run_points import collect_runs
from tests.commands.command_line import mosaic_status

ROOT = Path(__file__).resolve().parents[2]


def make_run(
    folder: Path, scheduler: str = "ilp", makespan_s: float | None = 100.0, *, workload: str = "w", seed: int = 0,
    costs: str = "paper", config: dict | None = None, **summary: object,
) -> Path:  # fmt: skip
    """Write the two files of a run folder that a comparison reads."""
    folder.mkdir(parents=True)
    content = {
        "workload": workload, "scheduler": scheduler, "backend": "sim", "gate": None, "costs": costs, "seed": seed,
        "num_failed_calls": 0, "expert_makespan_s": makespan_s, "end_to_end_s": makespan_s and 2 * makespan_s,
        "gpu_idle_frac": 0.25, "num_loads": 6, "problem_fingerprint": f"{workload}{seed}",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(content | summary))
    base = {"seed": seed, "workload": {"name": workload}, "scheduler": {"_target_": f"m.{scheduler}"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(base | (config or {})))
    return folder


def make_sweep(root: Path, ratios=(2.0, 8.0), **changes) -> Path:
    """Round robin takes 100, 200, ... s; the ILP is faster by the ratios, seed by seed."""
    for seed, ratio in enumerate(ratios):
        make_run(root / f"rr{seed}", "round_robin", 100.0 * (seed + 1), seed=seed)
        make_run(root / f"ilp{seed}", "ilp", 100.0 * (seed + 1) / ratio, seed=seed, **changes)
    return root


def compare(root: Path, baseline="round_robin", **options):
    return compare_runs(collect_runs([root])[0], baseline=baseline, **options)


def rows_of(comparison) -> list[SimpleNamespace]:
    return [SimpleNamespace(**in_columns(row)) for row in comparison.rows]


def row_of(comparison, policy):
    return next(row for row in rows_of(comparison) if row.policy == policy)


def test_speedup_is_the_geometric_mean_of_ratios_paired_by_seed(tmp_path):
    row = row_of(compare(make_sweep(tmp_path)), "ilp")
    half = 12.7062 * log(8 / 2) / sqrt(2) / sqrt(2)  # t(1, 0.975) x sd / sqrt(2) of two logs
    assert row.ratios == [2.0, 8.0]
    assert row.speedup == pytest.approx(4.0)
    assert row.speedup_low == pytest.approx(exp(log(4) - half), rel=1e-4)
    assert row.speedup_high == pytest.approx(exp(log(4) + half), rel=1e-4)
    assert (row.num_seeds, row.num_pairs, row.time_s) == (2, 2, pytest.approx(37.5))


def test_workloads_are_compared_apart(tmp_path):
    for workload, speed in (("a", 2.0), ("b", 4.0)):
        make_run(tmp_path / f"{workload}-rr", "round_robin", 100.0, workload=workload)
        make_run(tmp_path / f"{workload}-ilp", "ilp", 100.0 / speed, workload=workload)
    rows = [(row.case, row.speedup) for row in rows_of(compare(tmp_path)) if row.policy == "ilp"]
    assert rows == [("a", 2.0), ("b", 4.0)]


def test_policies_are_named_by_the_settings_that_vary_and_no_others(tmp_path):
    make_run(tmp_path / "rr", "round_robin")
    for k in (2, None):
        scheduler = {"_target_": "m.ilp", "max_experts_per_worker": k, "time_limit_s": 10}
        make_run(tmp_path / f"k{k}", "ilp", config={"scheduler": scheduler})
    policies = {row.policy for row in rows_of(compare(tmp_path))}
    assert policies == {"round_robin", "ilp max_experts_per_worker=2", "ilp"}


def test_gates_are_named_with_the_settings_that_tell_them_apart(tmp_path):
    gates = [("never", None), ("majority", 2 / 3), ("majority", 1.0), ("majority", 0.66667), ("calibrated", 0.71)]
    for number, (gate, tau) in enumerate(gates):
        config = {"gate": {"_target_": f"m.{gate}"} | ({} if tau is None else {"tau": tau, "seed": 0})}
        make_run(tmp_path / f"rr{number}", "round_robin", gate=gate, config=config)
    assert {row.policy for row in rows_of(compare(tmp_path))} == {
        "round_robin gate=never", "round_robin gate=majority tau=0.666667", "round_robin gate=majority tau=1",
        "round_robin gate=majority tau=0.66667", "round_robin gate=calibrated tau=0.71",
    }  # fmt: skip


def test_aggregators_that_differ_are_named(tmp_path):
    for aggregator in ("tp4", "dp"):
        config = {"aggregator": {"name": aggregator, "tp_degree": 4, "aaa": aggregator}}
        make_run(tmp_path / aggregator, "round_robin", gate="never", aggregator=aggregator, config=config)
    make_run(tmp_path / "older", "ilp")
    policies = {row.policy for row in rows_of(compare(tmp_path))}
    assert policies == {
        "round_robin aggregator=tp4 gate=never", "round_robin aggregator=dp gate=never", "ilp"
    }  # fmt: skip


def test_gate_meets_the_baseline_with_its_own_gate_or_the_one_named(tmp_path):
    for scheduler, walls in (("round_robin", (400.0, 300.0)), ("ilp", (200.0, 100.0))):
        for gate, wall_s in zip(("never", "majority"), walls, strict=True):
            make_run(tmp_path / f"{scheduler}-{gate}", scheduler, gate=gate, end_to_end_s=wall_s)
    same = compare(tmp_path, metric="end_to_end_s")
    assert row_of(same, "ilp gate=majority").speedup == pytest.approx(3.0)
    never = compare(tmp_path, baseline="round_robin gate=never", metric="end_to_end_s")
    assert row_of(never, "ilp gate=majority").speedup == pytest.approx(4.0)
    assert row_of(never, "round_robin gate=majority").speedup == pytest.approx(4 / 3)


def test_other_machines_are_another_case_named_by_as_few_keys_as_tell(tmp_path):
    for name, memory in (("a100", 80), ("rtx", 24)):
        hardware = {"hardware": {"name": name, "memory_gib": memory, "aaa": memory}}
        make_run(tmp_path / f"rr-{name}", "round_robin", 100.0, config=hardware)
        make_run(tmp_path / f"ilp-{name}", "ilp", 50.0, config=hardware)
    assert {row.case for row in rows_of(compare(tmp_path))} == {"w hardware=a100", "w hardware=rtx"}


def test_world_that_differs_between_policies_is_never_paired(tmp_path):
    make_run(tmp_path / "rr", "round_robin", config={"cluster": {"num_workers": 4}})
    make_run(tmp_path / "ilp", "ilp", config={"cluster": {"num_workers": 8}})
    with pytest.raises(ValueError, match="no run shares workload, machines and seed"):
        compare(tmp_path)


def test_policy_meets_the_baseline_with_its_own_costs(tmp_path):
    for costs, base_s, own_s in (("paper", 100.0, 50.0), ("affine", 90.0, 30.0)):
        make_run(tmp_path / f"fifo-{costs}", "fifo", base_s, costs=costs)
        make_run(tmp_path / f"ilp-{costs}", "ilp", own_s, costs=costs)
    comparison = compare(tmp_path, baseline="fifo")
    assert row_of(comparison, "ilp costs=paper").speedup == pytest.approx(2.0)
    assert row_of(comparison, "ilp costs=affine").speedup == pytest.approx(3.0)


def test_ambiguous_baseline_must_be_named_in_full(tmp_path):
    for window in (64, 256):
        make_run(tmp_path / f"f{window}", "fifo", float(window), config={"scheduler": {"window_questions": window}})
    make_run(tmp_path / "ilp", "ilp", 32.0)
    with pytest.raises(ValueError, match=r"ambiguous.*'fifo window_questions=256', 'fifo window_questions=64'"):
        compare(tmp_path, baseline="fifo")
    assert row_of(compare(tmp_path, baseline="fifo window_questions=64"), "ilp").speedup == 2.0


def test_values_that_follow_the_seed_are_no_setting(tmp_path):
    for seed in (0, 1):
        for scheduler in ("ilp", "round_robin"):
            make_run(tmp_path / f"{scheduler}{seed}", scheduler, seed=seed, config={"world": {"root_seed": seed}})
    assert row_of(compare(tmp_path), "ilp").num_pairs == 2


def test_setting_that_changes_with_the_seeds_is_shown_and_not_averaged_over(tmp_path):
    for seed, k in ((0, 2), (1, 3)):
        make_run(tmp_path / f"rr{seed}", "round_robin", seed=seed)
        make_run(tmp_path / f"ilp{seed}", "ilp", seed=seed, config={"scheduler": {"k": k}})
    assert row_of(compare(tmp_path), "ilp k=2").num_seeds == 1


def test_missing_pairs_are_named_in_both_directions(tmp_path):
    make_sweep(tmp_path)
    make_run(tmp_path / "ilp9", "ilp", seed=9)
    make_run(tmp_path / "rr7", "round_robin", seed=7)
    comparison = compare(tmp_path)
    assert "no pair: ilp on w, seed 9 has no run of round_robin" in comparison.notes
    assert "no pair: ilp on w has no run with seed 7" in comparison.notes
    assert (row_of(comparison, "ilp").num_pairs, row_of(comparison, "ilp").num_seeds) == (2, 3)


def test_runs_over_other_calls_are_not_paired(tmp_path):
    make_sweep(tmp_path)
    make_run(tmp_path / "rr5", "round_robin", seed=5)
    make_run(tmp_path / "ilp5", "ilp", seed=5, problem_fingerprint="other")
    assert "no pair: ilp on w, seed 5 served other calls than the run of round_robin" in compare(tmp_path).notes


def test_the_table_has_the_fastest_first_and_says_once_what_all_policies_share(tmp_path, capsys):
    make_sweep(tmp_path)
    assert mosaic_status("compare", tmp_path) == 0
    case, head, *policies = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert case == "w: seeds 2"
    assert "seeds" not in head
    assert [line.split()[0] for line in policies] == ["ilp", "round_robin"]
    assert policies[1].split()[-4:-2] == ["1.00", "baseline"]


def test_repeated_configuration_counts_once_and_is_named(tmp_path):
    make_sweep(tmp_path)
    make_run(tmp_path / "ilp0-again", "ilp", 1.0, seed=0)
    comparison = compare(tmp_path)
    assert row_of(comparison, "ilp").num_seeds == 2
    assert "repeated: ilp on w, seed 0 in ilp0-again, counted once as ilp0" in comparison.notes


def test_command_writes_table_csv_and_figure(tmp_path, capsys):
    make_sweep(tmp_path)
    assert mosaic_status("compare", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "4.00 (2.00, 8.00)" in printed, "of two seeds both values: their interval says nothing"
    assert printed.startswith((tmp_path / "compare.txt").read_text())
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert list(rows[0]) == list(COLUMNS)
    assert {rows[0][column] for column in OUTCOME_COLUMNS} == {"", "0"}
    assert not any(word in printed for word in ("accuracy ", "skip", "change"))
    assert "tradeoff.png is not drawn: no run knows its accuracy" in printed
    assert not (tmp_path / "tradeoff.png").exists()
    assert [float(row["speedup"]) for row in rows] == pytest.approx([1.0, 4.0])
    assert rows[0]["speedup_low"] == ""
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_command_lists_what_it_skipped(tmp_path, capsys):
    make_sweep(tmp_path)
    (tmp_path / "crashed").mkdir()
    make_run(tmp_path / "planned", makespan_s=None)
    make_run(tmp_path / "failed", num_failed_calls=3)
    make_run(tmp_path / "half").joinpath("summary.json").unlink()
    make_run(tmp_path / "old").joinpath("summary.json").write_text('{"seed": 0}')
    make_run(tmp_path / "bare").joinpath("config.yaml").unlink()
    (tmp_path / ".hydra").mkdir()
    assert mosaic_status("compare", tmp_path) == 0
    printed = capsys.readouterr().out
    for message in (
        "crashed: incomplete, no readable summary.json", "planned: planned but not run", "failed: 3 calls failed",
        "half: incomplete", "old: summary.json lacks workload", "bare/config.yaml: cannot be read",
    ):  # fmt: skip
        assert message in printed
    assert printed.count("skipped") == 6


def test_several_run_folders_are_compared_beside_them(tmp_path):
    make_sweep(tmp_path, ratios=(2.0,))
    assert mosaic_status("compare", tmp_path / "rr0", tmp_path / "ilp0") == 0
    assert (tmp_path / "compare.csv").exists()
    assert mosaic_status("compare", tmp_path / "rr0", tmp_path / "ilp0", "--out", tmp_path / "here" / "there") == 0
    assert (tmp_path / "here/there/compare.png").exists()


def test_baseline_alone_still_gives_its_table_and_no_figure(tmp_path, capsys):
    make_run(tmp_path / "rr", "round_robin", gpu_idle_frac=None, num_loads=None)
    (tmp_path / "compare.png").write_bytes(b"of an earlier comparison")
    assert mosaic_status("compare", tmp_path) == 0
    assert "compare.png is not drawn: no policy has a run beside one of round_robin" in capsys.readouterr().out
    assert not (tmp_path / "compare.png").exists()


def test_partial_pairs_and_long_names_are_drawn(tmp_path, capsys):
    make_sweep(tmp_path)
    make_run(tmp_path / "ilp5", "ilp", seed=5)
    for place in ("left", "right"):
        config = {"scheduler": {"a_setting_with_a_very_long_name_indeed": place}}
        make_run(tmp_path / f"long-{place}", "least_loaded", seed=0, config=config)
    assert mosaic_status("compare", tmp_path) == 0
    assert "from 2 pairs" in capsys.readouterr().out


def test_bad_commands_end_with_status_2_and_a_message(tmp_path, capsys):
    assert mosaic_status("compare", str(tmp_path / "nowhere")) == 2
    assert "folder must be an existing multirun or run folder" in capsys.readouterr().err
    assert mosaic_status("compare", tmp_path) == 2
    assert "no complete run below" in capsys.readouterr().err
    make_run(tmp_path / "ilp", "ilp")
    assert mosaic_status("compare", str(tmp_path), "--baseline", "round_robin") == 2
    assert "--baseline must be one of the complete policies ['ilp'], got 'round_robin'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert mosaic_status("compare", str(tmp_path), "--baseline", "ilp", "--out", str(tmp_path / "file")) == 2
    assert "folder must be one that can be made" in capsys.readouterr().err


def rows_in(table: Path, policy: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(table.read_text().splitlines()) if row["policy"] == policy]


DISTURBED = {
    "resumed once (at 9.0 s, after a pause of 60.0 s)": {"resumptions": [{"ts": 9.0, "pause_s": 60.0}]},
    "lost worker 1 at 3.0 s": {"lost_workers": [{"ts": 3.0, "worker": 1, "cause": "unplugged"}]},
}


@pytest.mark.parametrize("said", DISTURBED)
def test_times_of_disturbed_runs_are_left_out_unless_asked_for(tmp_path, capsys, said):
    make_sweep(tmp_path, ratios=(2.0, 2.0))
    make_run(tmp_path / "rr2", "round_robin", 100.0, seed=2)
    make_run(tmp_path / "ilp2", "ilp", 400.0, seed=2, **DISTURBED[said])

    assert mosaic_status("compare", tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"ilp2: {said}, so its times are not its policy's alone; compare.py --disturbed counts it" in printed
    (row,) = rows_in(tmp_path / "compare.csv", "ilp")
    assert (row["num_seeds"], row["num_pairs"], float(row["speedup"])) == ("2", "2", pytest.approx(2.0))

    assert mosaic_status("compare", str(tmp_path), "--disturbed") == 0
    printed = capsys.readouterr().out
    assert f"ilp2: {said}" in printed.split("disturbed, and left in: ")[1]
    (row,) = rows_in(tmp_path / "compare.csv", "ilp")
    assert (row["num_seeds"], row["num_pairs"], float(row["speedup"])) == ("3", "3", pytest.approx(1.0))


def test_undisturbed_runs_say_nothing_of_it(tmp_path, capsys):
    make_sweep(tmp_path, resumptions=[], lost_workers=[])
    assert mosaic_status("compare", str(tmp_path), "--disturbed") == 0
    printed = capsys.readouterr().out
    assert "disturbed," not in printed
    assert "skipped" not in printed


def test_a_sweep_is_compared_with_round_robin_that_never_skips_if_it_has_one(tmp_path):
    """So that the command which a run prints works on any sweep."""

    def gated(folder: str, scheduler: str, gate: str) -> None:
        config = {"gate": {"_target_": f"m.{gate}"}}
        make_run(tmp_path / folder / f"{scheduler}-{gate}", scheduler, config=config, gate=gate)

    def baseline(*folders: str) -> str:
        return default_baseline(collect_runs([tmp_path / folder for folder in folders])[0])

    gated("a", "ilp", "majority")
    assert baseline("a") == "ilp"
    gated("b", "ilp", "never")
    assert "never" in baseline("a", "b")
    gated("c", "round_robin", "majority")
    assert baseline("a", "b", "c").startswith("round_robin")
    gated("d", "round_robin", "never")
    chosen = baseline("a", "b", "c", "d")
    assert chosen.startswith("round_robin")
    assert "never" in chosen
    assert mosaic_status("compare", tmp_path) == 0


@pytest.mark.slow
def test_script_runs_from_any_folder(tmp_path):
    make_sweep(tmp_path)
    command = [sys.executable, "-m", "mosaic", "compare", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command[-1] = "absent"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_interval_matches_the_table_of_student():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.3027 / sqrt(3), rel=1e-4), pytest.approx(2 + 4.3027 / sqrt(3), rel=1e-4))
    assert t_interval([1.0]) == (None, None)


def test_an_interval_is_shown_from_three_values_on_and_never_past_what_is_possible():
    assert estimate([0.1, 0.9]).shown() is None
    found = estimate([0.0, 0.1, 0.9])
    assert found.low < 0
    assert found.shown(least=0.0) == (0.0, found.high)


def test_runs_on_several_numbers_of_gpus_are_compared_with_the_fewest(tmp_path, capsys):
    for seed in (0, 1, 2):
        for scheduler, walls in (("round_robin", (800.0, 500.0)), ("ilp", (600.0, 150.0))):
            for num_workers, wall_s in zip((2, 4), walls, strict=True):
                make_run(
                    tmp_path / f"{scheduler}{num_workers}-{seed}", scheduler, wall_s, seed=seed, num_calls=10,
                    num_workers=num_workers, problem_fingerprint=f"{num_workers}-{seed}",
                    config={"cluster": {"num_workers": num_workers}},
                )  # fmt: skip
    assert mosaic_status("compare", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Across numbers of GPUs: each policy over itself on the fewest" in printed
    assert "w num_workers=4" in printed, "policies meet on equal machines only"
    rows = list(csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines()))
    assert list(rows[0]) == list(SCALING_COLUMNS)
    found = {(row["policy"], row["num_workers"]): float(row["speedup"]) for row in rows}
    expected = {("round_robin", "2"): 1.0, ("round_robin", "4"): 1.6, ("ilp", "2"): 1.0, ("ilp", "4"): 4.0}
    assert found == pytest.approx(expected)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_on_a_page_is_not_drawn(tmp_path, capsys):
    make_run(tmp_path / "rr", "round_robin")
    for k in range(80):
        make_run(tmp_path / f"ilp{k}", config={"scheduler": {"max_experts_per_worker": k}})
    assert mosaic_status("compare", tmp_path) == 0
    assert "compare.png is not drawn: 80 policies do not fit on a page" in capsys.readouterr().out
    make_run(tmp_path / "few" / "rr", "round_robin")
    for k in range(60):
        make_run(tmp_path / "few" / f"ilp{k}", config={"scheduler": {"max_experts_per_worker": k}})
    assert mosaic_status("compare", str(tmp_path / "few")) == 0
    height = int.from_bytes((tmp_path / "few" / "compare.png").read_bytes()[20:24], "big")
    assert height <= 9 * 250, "at most a page"
