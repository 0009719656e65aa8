"""Reactions, exits, budgets, topologies and the keys of GPU use, from the command line to the run folder."""

from collections import Counter
from pathlib import Path

import pytest

from mosaic.core.commands import Action, Cancel, Cut, Move, Prefill, decode_action
from mosaic.core.results import CallStatus
from mosaic.pipelines import FasterMoa
from mosaic.pipelines.rules.calibration_answers import split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Never
from mosaic.pipelines.rules.weighted import Weighted, learn_reliabilities
from tests.answered_questions import agreement
from tests.commands.command_line import QUICK, SMALL, prepare, run_into, run_point
from tests.run_tables import answers_of, calls_of, read_plans, rows, summary_of

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp")
QUORUM, OVERLAP, MOVES = (f"pipeline.{name}=true" for name in ("quorum", "overlap", "moves"))
ALL = (QUORUM, OVERLAP, MOVES)
READERS = ("backend.order=mixed", "gate=never", OVERLAP)
PREFILL = "pipeline.prefill_ahead=true"
SAME = ("num_calls", "skip_frac", "accuracy_frac", "num_aggregator_calls", "accuracy_change_pp", "always_aggregate_s")


def run_reacting(folder: Path, *overrides: str) -> Path:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert ("calls cancelled" in outcome.out) == (QUORUM in overrides)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_reacting(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_reacting(tmp_path_factory.mktemp("early"), QUORUM)


def check_same_answers(folder: Path, other: Path) -> None:
    keys = ("question", "answer", "source", "gold", "correct")
    ours, others = ([[row[key] for key in keys] for row in rows(each, "answers")] for each in (folder, other))
    assert ours == others


def actions_of(folder: Path) -> list[Action]:
    return [decode_action(line) for line in (folder / "actions.jsonl").read_bytes().splitlines()]


def test_a_quorum_keeps_answers_and_cancelled_calls_are_told_apart(plain: Path, early: Path) -> None:
    check_same_answers(early, plain)
    cancelled = {key for key, status in statuses(early).items() if status == "cancelled"}
    assert cancelled
    summary, whole = summary_of(early), summary_of(plain)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    assert {key: summary[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert summary["output_tokens"] < whole["output_tokens"]


def test_a_run_that_cancels_leaves_the_log_of_its_commands_and_another_leaves_none(plain: Path, early: Path) -> None:
    assert not (plain / "actions.jsonl").exists()
    cancels = [action for action in actions_of(early) if isinstance(action.command, Cancel)]
    assert len(cancels) == summary_of(early)["num_cancelled_calls"]
    assert all(action.cause.startswith("finished ") for action in cancels)


def test_a_quorums_plan_has_all_calls_and_says_which_share_it_priced(plain: Path, early: Path) -> None:
    before, after = (read_plans(folder)[0] for folder in (plain, early))
    served = [sorted(str(key) for session in plan["sessions"] for key in session["shard"]) for plan in (before, after)]
    assert served[0] == served[1]
    assert any("expected to run" in note for note in after["notes"])
    assert not any("expected to run" in note for note in before["notes"])


def test_a_saved_plan_is_run_as_it_is_with_the_rule_alone(plain: Path, tmp_path: Path) -> None:
    ruled = run_reacting(tmp_path / "ruled", QUORUM, f"plan.path={plain / 'plan.json'}")
    assert read_plans(ruled)[0] == read_plans(plain)[0]
    check_same_answers(ruled, plain)


@pytest.mark.parametrize("chosen", [(OVERLAP,), (MOVES,), ALL], ids=["overlap", "moves", "all"])
def test_answers_and_what_is_counted_are_those_without(plain: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    folder = run_reacting(tmp_path / "reacting", *chosen)
    check_same_answers(folder, plain)
    summary, before = summary_of(folder), summary_of(plain)
    assert {key: summary[key] for key in SAME} == {key: before[key] for key in SAME}
    assert summary["num_failed_calls"] == 0
    assert summary["expert_makespan_s"] + summary["aggregator_s"] == pytest.approx(summary["end_to_end_s"])
    if OVERLAP in chosen:
        ends = {node: [r for r in rows(folder, "calls") if r["node"] == node] for node in ("propose", "aggregate")}
        last_ts = max(row["finished_ts"] for row in ends["propose"])
        assert summary["expert_makespan_s"] == pytest.approx(last_ts)
        assert min(row["admitted_ts"] for row in ends["aggregate"]) < last_ts, "no barrier"
    assert any(isinstance(action.command, Move) for action in actions_of(folder)) <= (MOVES in chosen)


def test_prefilling_ahead_keeps_answers_and_its_work_is_counted(tmp_path: Path) -> None:
    without, ahead = run_reacting(tmp_path / "without", *READERS), run_reacting(tmp_path / "ahead", *READERS, PREFILL)
    check_same_answers(ahead, without)
    before, summary = summary_of(without), summary_of(ahead)
    assert "prefill_ahead" not in before
    for key in ("num_calls", "output_tokens", "skip_frac"):
        assert summary[key] == before[key]
    report = summary["prefill_ahead"]
    num_sent = sum(isinstance(action.command, Prefill) for action in actions_of(ahead))
    assert 0 < report["num_prefills"] <= num_sent
    assert report["wasted_tokens"] == max(0, report["computed_tokens"] - report["reused_tokens"])
    merged = [row for row in rows(ahead, "calls") if row["node"] == "aggregate"]
    assert sum(row["cached_tokens"] for row in merged) >= report["reused_tokens"] > 0
    assert {row["node"] for row in rows(ahead, "calls")} == {"propose", "aggregate"}


@pytest.mark.parametrize("reactions", [(), ALL])
@pytest.mark.parametrize(
    "chosen", ["backend.keep=weights", "backend.keep=engines", "backend.load_ahead_gib=20", "backend.experts_per_gpu=2"]
)
def test_how_gpus_are_shared_changes_loads_and_no_answer(
    plain: Path, tmp_path: Path, chosen: str, reactions: tuple[str, ...]
) -> None:
    summary, before = summary_of(run_reacting(tmp_path, chosen, *reactions)), summary_of(plain)
    assert {key: summary[key] for key in SAME[:5]} == {key: before[key] for key in SAME[:5]}
    assert 0 <= summary["gpu_idle_frac"] < 1
    if not reactions:
        assert summary["end_to_end_s"] <= before["end_to_end_s"], "this batch is mostly loads"


EXITING = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp", "gate=never")
TREE = (*SMALL, *QUICK, "world.output_tokens.LlamaR1.mean.value=400", "topology=tree")


def test_the_default_is_never_in_the_papers_pipeline_and_agreement_elsewhere() -> None:
    assert not prepare(*SMALL, *QUICK).job.graph.rule.is_exit
    assert prepare(*TREE).job.graph.rule == agreement()
    assert prepare(*TREE, "exit=never").job.graph.rule == Never()
    assert prepare(*EXITING, "exit=agreement", "exit.tau=1").job.graph.rule == agreement(1)
    assert prepare(*EXITING, "exit=faster_moa", "seed=7").job.graph.rule == FasterMoa(seed=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exits")
    return {
        "never": run_into(root / "never", *TREE, "exit=never"),
        "agreement": run_into(root / "agreement", *TREE),
        "faster_moa": run_into(root / "faster_moa", *TREE, "exit=faster_moa", "pipeline.barrier=false"),
    }


def test_every_question_is_answered_once_and_what_was_cancelled_is_told_apart(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        summary, answers, calls = summary_of(folder), rows(folder, "answers"), rows(folder, "calls")
        assert summary["gate"] == name
        assert len(answers) == len({row["question"] for row in answers}) == summary["num_questions"]
        keys = [(row["question"], row["node"], row["slot"]) for row in calls]
        assert len(keys) == len(set(keys))
        cancelled = sum(row["status"] == CallStatus.CANCELLED for row in calls)
        assert summary["num_cancelled_calls"] == cancelled
        assert (cancelled > 0) == (name != "never")
        assert summary["num_failed_calls"] == 0
        assert (folder / "calibration_answers.parquet").exists() == (name == "never")
    assert summary_of(folders["agreement"])["skip_frac"] > 0
    assert summary_of(folders["faster_moa"])["skip_frac"] == 0
    whole, early = (summary_of(folders[name]) for name in ("never", "agreement"))
    assert early["output_tokens"] < whole["output_tokens"]
    assert early["always_aggregate_accuracy_frac"] == whole["accuracy_frac"]


def test_answers_do_not_depend_on_who_runs_what_when(folders: dict[str, Path], tmp_path: Path) -> None:
    other = run_into(tmp_path / "other", *TREE, "scheduler=round_robin", "pipeline.overlap=true")
    assert [row["answer"] for row in rows(other, "answers")] == [
        row["answer"] for row in rows(folders["agreement"], "answers")
    ]


@pytest.mark.slow
def test_a_calibrated_exit_learns_from_a_run_without_one_and_refuses_its_own_questions(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    learned = f"exit.calibration={folders['never'] / 'calibration_answers.parquet'}"
    with pytest.raises(ValueError, match="exit.calibration must hold other questions than the batch"):
        prepare(*TREE, "exit=calibrated", learned)
    part = ("workload.part=calibration", "workload.num_calibration_questions=120")
    taught = run_into(tmp_path / "taught", *TREE, *part, "exit=never")
    learned = f"exit.calibration={taught / 'calibration_answers.parquet'}"
    run = run_into(tmp_path / "run", *TREE, "exit=calibrated", learned, "exit.accepted_loss_frac=0.3")
    summary = summary_of(run)
    assert summary["gate"] == "calibrated"
    assert summary["gate_report"]["threshold"] is not None
    assert summary["skip_frac"] > 0
    shifted = run_into(
        tmp_path / "shifted", *TREE, "exit=calibrated", learned, "exit.accepted_loss_frac=0.3",
        "world.answers.mean_ability.value=-2", "world.answers.distractor_std.value=0.1",
    )  # fmt: skip
    promises = [summary_of(folder)["gate_report"]["promise"] for folder in (run, shifted)]
    assert [promise["is_withdrawn"] for promise in promises] == [False, True]
    with pytest.raises(ValueError, match="exit.calibration must hold answers of what runs here"):
        prepare(*TREE, "topology=all_to_all", "exit=calibrated", learned)


BUDGETED = ("workload=gpqa", "cluster.num_workers=2", "aggregator=dp", *QUICK)
CALIBRATION = (*BUDGETED, "gate=never", "workload.part=calibration", "workload.num_calibration_questions=600")
BOTH = ("pipeline.budgets=calibrated", "pipeline.hedge=calibrated")
ACCEPTED = 0.1


@pytest.fixture(scope="module")
def calibration_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_into(tmp_path_factory.mktemp("calibration_run"), *CALIBRATION, "pipeline.leave_one_out=true")
    return folder / "calibration_answers.parquet"


def promise(path: Path) -> tuple[str, ...]:
    return f"pipeline.promise.calibration={path}", f"pipeline.promise.accepted_loss_frac={ACCEPTED}"


def statuses(folder: Path) -> dict[tuple[str, str, int], str]:
    return {key: row["status"] for key, row in calls_of(folder).items()}


def test_calibration_answers_hold_lengths_and_what_each_response_was_worth(calibration_run: Path) -> None:
    questions = load_calibration_answers(calibration_run)
    assert len(questions) == 600
    for question in questions:
        seen = question.observed
        assert len(seen) == 3
        assert all(one.left_out_correct for one in seen if one.left_out_answer == question.ballot.question.answer)
    rights = [sum(one.left_out_correct for one in question.observed) for question in questions]
    assert 0 < sum(rights) < 3 * len(questions)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [("gate=never",), ("gate=unanimous",), ("gate=majority", "pipeline.quorum=true")])
def test_calls_are_cut_where_the_promise_allows(tmp_path: Path, calibration_run: Path, gate: tuple[str, ...]) -> None:
    folder = run_into(tmp_path / "run", *BUDGETED, *gate, *BOTH, *promise(calibration_run))
    summary = summary_of(folder)
    report = summary["gate_report"]["budgets"]
    cut = [key for key, status in statuses(folder).items() if status == "cut"]
    assert report["num_cut_calls"] == len(cut) > 0
    assert (report["accepted_loss_frac"], report["risk_frac"]) == (ACCEPTED, 0.05)
    assert summary["gate_report"]["promise"]["is_withdrawn"] is False, "the same world"
    assert report["promise_frac"] <= ACCEPTED
    assert summary["num_failed_calls"] == 0
    commands = [action.command for action in actions_of(folder)]
    assert {command.key for command in commands if isinstance(command, Cut)} >= set(cut)
    again = run_into(tmp_path / "again", *BUDGETED, *gate, *BOTH, *promise(calibration_run))
    assert (again / "calls.parquet").read_bytes() == (folder / "calls.parquet").read_bytes()


@pytest.mark.slow
def test_a_calibrated_gate_and_budgets_are_promised_together(tmp_path: Path, calibration_run: Path) -> None:
    gate = ("gate=calibrated", f"gate.calibration={calibration_run}", f"gate.accepted_loss_frac={ACCEPTED}")
    folder = run_into(tmp_path / "run", *BUDGETED, *gate, *BOTH)
    report = summary_of(folder)["gate_report"]
    assert report["threshold"] == report["budgets"]["threshold"]
    assert report["budgets"]["num_cut_calls"] > 0
    shifted = run_into(tmp_path / "shifted", *BUDGETED, *gate, *BOTH, "world.answers.mean_ability.value=5")
    withdrawn = [summary_of(run)["gate_report"]["promise"]["is_withdrawn"] for run in (folder, shifted)]
    assert withdrawn == [False, True]
    with pytest.raises(ValueError, match="gate=calibrated says what is promised"):
        prepare(*BUDGETED, *gate, *BOTH, "pipeline.promise.risk_frac=0.1")


def test_a_weighted_gate_learns_from_no_question_that_certifies(calibration_run: Path) -> None:
    gate = ("gate=weighted", f"gate.calibration={calibration_run}")
    rule = prepare(*BUDGETED, *gate, *BOTH, *promise(calibration_run)).job.graph.rule
    fit, _ = split_calibration(load_calibration_answers(calibration_run), 0.3)
    assert isinstance(rule, Weighted)
    assert rule.reliabilities == learn_reliabilities(fit)
    assert rule.num_questions == len(fit) < 600


def test_what_cannot_be_promised_is_left_out_and_the_screen_says_so(tmp_path: Path, calibration_run: Path) -> None:
    few = f"pipeline.promise.calibration={calibration_run}", "pipeline.promise.accepted_loss_frac=0.0001"
    outcome = run_point(*BUDGETED, *BOTH, *few, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert "cannot promise" in outcome.out
    assert set(statuses(tmp_path / "run").values()) == {"finished"}


def test_answers_of_the_batch_or_of_something_else_are_refused(tmp_path: Path, calibration_run: Path) -> None:
    whole = run_into(tmp_path / "plain", *BUDGETED, "gate=never") / "calibration_answers.parquet"
    with pytest.raises(
        ValueError, match="198 of 198 questions lack them: make it again, with pipeline.leave_one_out=true"
    ):
        prepare(*BUDGETED, *BOTH, *promise(whole))
    own = (
        run_into(tmp_path / "own", *BUDGETED, "gate=never", "pipeline.leave_one_out=true")
        / "calibration_answers.parquet"
    )
    with pytest.raises(ValueError, match=r"calibration must hold other questions than the batch, got 198"):
        prepare(*BUDGETED, *BOTH, *promise(own))
    with pytest.raises(ValueError, match="pipeline.promise.calibration must hold answers of what runs here"):
        prepare(*BUDGETED, *BOTH, *promise(calibration_run), "pool.experts.LlamaR1.temperature=0.5")


SEATED = (*SMALL, *QUICK, "world.output_tokens.LlamaR1.mean.value=400", "exit=never")
NUM_QUESTIONS = 10
LAYERS = {"tree": (9, 3, 1), "all_to_all": (9, 9, 1)}


def seats(*overrides: str) -> list[str]:
    graph = prepare(*overrides).job.graph
    return [" ".join(expert.name for node in layer for expert in node.experts) for layer in graph.layers]


def test_numbers_seat_the_experts_that_the_workload_asks_and_at_the_top_its_aggregator() -> None:
    assert seats(*SEATED, "topology=tree") == [
        " ".join(["LlamaR1 Gemma Qwen"] * 3), "LlamaR1 Gemma Qwen", "LlamaR1"
    ]  # fmt: skip
    assert seats(*SEATED, "topology=tree", "workload.aggregator=GLM")[-1] == "GLM"
    assert seats(*SEATED, "topology=tree", "topology.layers=[2,[Qwen,Gemma],[GLM]]", "topology.fan_in=[1,null]") == [
        "LlamaR1 Gemma", "Qwen Gemma", "GLM",
    ]  # fmt: skip


def test_above_the_first_layer_sits_who_can_read_what_was_said() -> None:
    """Gemma's context does not take nine responses where a prompt leaves it room for nearly all of the rest."""
    tight = "topology.min_output_tokens=7900"
    assert seats(*SEATED, "topology=all_to_all", "topology.layers=[9,2,1]")[1] == "LlamaR1 Gemma"
    cut = "pool.experts.Gemma.context_tokens=1100"
    assert seats(*SEATED, "topology=all_to_all", "topology.layers=[9,2,1]", cut, tight)[1] == "LlamaR1 Qwen"


def test_the_default_is_flat() -> None:
    assert prepare(*SEATED).job.graph == prepare(*SEATED, "topology=flat").job.graph
    assert [node.name for node in prepare(*SEATED).job.graph.nodes] == ["propose", "aggregate"]


@pytest.mark.parametrize("topology", ["tree", "all_to_all"])
@pytest.mark.parametrize(
    "option",
    [
        "pipeline.barrier=true", "pipeline.barrier=false", "pipeline.barrier=false pipeline.forecast=true",
        "pipeline.overlap=true",
    ],
)  # fmt: skip
def test_every_question_is_answered_once_however_layers_follow(tmp_path: Path, topology: str, option: str) -> None:
    folder = run_into(tmp_path / "run", *SEATED, f"topology={topology}", *option.split())
    calls = calls_of(folder)
    assert {row["status"] for row in calls.values()} == {"finished"}
    answers = answers_of(folder)
    assert len({row["question"] for row in answers}) == len(answers) == NUM_QUESTIONS
    per_question = Counter((row["question"], row["role"]) for row in calls.values())
    sizes = {f"layer_{depth}": number for depth, number in enumerate(LAYERS[topology], start=1)}
    assert per_question == {(row["question"], role): number for row in answers for role, number in sizes.items()}
    assert {row["answer"] == calls[row["question"], "layer_3", 0]["answer"] for row in answers} == {True}
    low_ts = max(row["finished_ts"] for row in calls.values() if row["role"] == "layer_1")
    starts_ts = [row["admitted_ts"] for row in calls.values() if row["role"] == "layer_2"]
    assert (min(starts_ts) >= low_ts) == (option == "pipeline.barrier=true")
