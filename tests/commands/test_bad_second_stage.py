"""Bad settings of gate, aggregator and answers, refused as all other bad input is."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.pipelines.gates.calibration_file import encode_calibration_answers
from mosaic.report.run_folder import is_complete
from tests.calibration_questions import SETTING, make_question
from tests.commands.command_line import QUICK, SMALL, run_here, run_point, run_process
from tests.commands.test_bad_inputs import LINE, Case, assert_refused, jsonl, write_files


def parquet(content: pa.Table) -> bytes:
    """Encode a table."""
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    return bytes(sink.getvalue())


def with_column(content: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Replace a column."""
    return content.set_column(content.column_names.index(name), name, values)


GOOD = encode_calibration_answers([make_question(f"c{i}", "AAA" if i % 2 else "AAB") for i in range(40)], SETTING)
ANSWERS = pq.read_table(pa.BufferReader(GOOD))
TMP_NONE = "gate.calibration=TMP/none.parquet"


def calibrated(name: str, content: bytes, says: Sequence[str], settings: str = "") -> Case:
    """A case of gate=calibrated with these calibration answers, or with another file and settings of the gate."""
    lines = ["gate=calibrated", "gate.calibration=TMP/c.parquet"]
    lines += [line if line.startswith("gate.") else f"gate.{line}" for line in settings.splitlines()]
    return Case(name, "\n".join(lines), says, {"c.parquet": content})


def weighted(name: str, says: Sequence[str], setting: str) -> Case:
    return Case(name, f"gate=weighted\ngate.calibration=TMP/c.parquet\ngate.{setting}", says, {"c.parquet": GOOD})


GATES = [
    Case("no_share_of_the_slots", "gate.tau=0", ["gate.tau must be above 0, got 0"]),
    Case("more_than_all_slots", "gate.tau=1.5", ["gate.tau must be at most 1, got 1.5"]),
    Case("share_of_letters", "gate.tau=abc", ["gate.tau must be a number, got 'abc'"]),
    Case("share_that_is_none", "gate.tau=nan", ["gate.tau must be finite, got nan"]),
    Case("unknown_gate", "gate=nonsense", ["gate must be one of", "'calibrated'", "'weighted'", "got 'nonsense'"]),
    Case("unknown_key_of_a_gate", "gate.foo=1", ["gate.foo must be a key of the configuration, one of ['tau']"]),
    Case("key_of_another_gate", "gate=never\n+gate.tau=1", ["gate got an unexpected keyword argument 'tau'"]),
    Case("gate_taken_away", "~gate", ["gate must be given, got None"]),
    Case("gate_not_there", "gate._target_=mine.Gate", ["gate._target_ must be importable, got 'mine.Gate'"]),
    Case("calibrated_on_nothing", "gate=calibrated", ["gate.calibration must be given"]),
    Case("weighted_by_nothing", "gate=weighted", ["gate.calibration must be given"]),
    calibrated("calibration_not_there", b"", ["none.parquet: must be a readable file", "No such"], TMP_NONE),
    calibrated("calibration_of_a_number", b"", ["gate.calibration must be a string, got 5"], "gate.calibration=5"),
    calibrated("calibration_of_null", b"", ["gate.calibration must be a string, got None"], "gate.calibration=null"),
    calibrated("calibration_of_a_folder", b"", ["answers TMP: must be a readable file"], "gate.calibration=TMP"),
    calibrated("calibration_not_parquet", b"hello", ["TMP/c.parquet: must be a parquet table of calibration answers"]),
    calibrated(
        "calibration_without_columns",
        parquet(pa.table({"question": ["a"]})),
        ["TMP/c.parquet: columns must be a superset of", "'aggregator_correct'", "are missing, got ['question']"],
    ),
    calibrated(
        "calibration_of_no_question", parquet(ANSWERS.slice(0, 0)), ["table must be of at least one row, got 0"]
    ),
    calibrated(
        "calibration_of_a_run_that_skipped",
        parquet(with_column(ANSWERS, "aggregator_correct", pa.nulls(len(ANSWERS), pa.bool_()))),
        ["question c0: aggregator_correct must be given", "gate=never", "got None"],
    ),
    calibrated(
        "slots_twice",
        parquet(with_column(ANSWERS, "slot", pa.array([0] * len(ANSWERS)))),
        ["question c0: slots must be 0, 1, 2 and so on, each once, got [0, 0, 0]"],
    ),
    calibrated("gain_for_a_loss", GOOD, ["accepted_loss_frac must be at least 0, got -0.1"], "accepted_loss_frac=-0.1"),
    calibrated("all_may_be_lost", GOOD, ["gate.accepted_loss_frac must be below 1, got 1"], "accepted_loss_frac=1"),
    calibrated("loss_of_letters", GOOD, ["accepted_loss_frac must be a number, got 'x'"], "accepted_loss_frac=x"),
    calibrated("promise_without_risk", GOOD, ["gate.risk_frac must be above 0, got 0"], "risk_frac=0"),
    calibrated("promise_of_nothing", GOOD, ["gate.risk_frac must be below 1, got 1"], "risk_frac=1"),
    calibrated(
        "unknown_confidence",
        GOOD,
        ["gate.confidence must be one of ['plurality', 'weighted'], got 'nonsense'"],
        "confidence=nonsense",
    ),
    calibrated("nothing_certifies", GOOD, ["gate.fit_frac must be below 1, got 1"], "fit_frac=1"),
    calibrated("negative_part", GOOD, ["gate.fit_frac must be at least 0, got -0.5"], "fit_frac=-0.5"),
    calibrated(
        "too_few_left_to_certify",
        GOOD,
        ["gate.fit_frac must be small enough to leave one of 40 calibration questions to certify, got 0.999"],
        "fit_frac=0.999",
    ),
    calibrated(
        "nothing_to_learn_from",
        GOOD,
        ["gate.fit_frac must be large enough to learn reliabilities from one of 40", "got 0"],
        "confidence=weighted\nfit_frac=0",
    ),
    calibrated("one_open_option", GOOD, ["gate.num_open_options must be at least 2, got 1"], "num_open_options=1"),
    weighted("no_posterior", ["gate.min_posterior must be above 0, got 0"], "min_posterior=0"),
    weighted("posterior_above_one", ["gate.min_posterior must be at most 1, got 1.1"], "min_posterior=1.1"),
]
OWN = encode_calibration_answers([make_question(name) for name in ("gpqa-7", "gpqa-8", "another")], SETTING)
GATES.append(
    Case(
        "calibrated_on_the_batch_itself",
        "workload=gpqa\ngate=calibrated\ngate.calibration=TMP/c.parquet",
        [
            "gate.calibration must hold other questions than the batch, got 2 of",
            "'gpqa-7'",
            "workload.part=calibration",
        ],
        {"c.parquet": OWN},
    )
)
GATES += [
    calibrated(
        "calibrated_on_something_else",
        GOOD,
        [
            "gate.calibration must hold answers of what runs here, got TMP/c.parquet",
            "workload is 'letters' there and 'mmlu_pro' here",
            "Make the file again",
        ],
    ),
    calibrated(
        "calibration_that_does_not_say_what_it_is_of",
        parquet(ANSWERS.replace_schema_metadata(None)),
        ["gate.calibration must say what its answers are of", "got TMP/c.parquet", "Make it again, with gate=never"],
    ),
]
AGGREGATORS = [
    Case(
        "degree_not_measured",
        "hardware=rtxpro6000",
        ["aggregator.tp_degrees must be degrees that rtxpro6000 was measured at, got [4]", "aggregator=dp"],
    ),
    Case("unknown_aggregator", "aggregator=nonsense", ["aggregator must be one of", "'auto'", "got 'nonsense'"]),
    Case("aggregator_taken_away", "~aggregator", ["aggregator must be given, got None"]),
    Case("no_degree", "aggregator.tp_degrees=[]", ["aggregator.tp_degrees must be at least one value, got []"]),
    Case("degree_of_zero", "aggregator.tp_degrees=[0]", ["aggregator.tp_degrees[0] must be at least 1, got 0"]),
    Case(
        "degree_above_the_workers",
        "aggregator.tp_degrees=[8]",
        ["aggregator.tp_degrees must be at most cluster.num_workers=4, got [8]", "aggregator=dp"],
    ),
    Case("degree_of_a_number", "aggregator.tp_degrees=4", ["tp_degrees must be a list, got 4"]),
    Case("degree_of_letters", "aggregator.tp_degrees=abc", ["tp_degrees must be a list, got 'abc'"]),
    Case("half_a_degree", "aggregator.tp_degrees=[1.5]", ["aggregator.tp_degrees[0] must be a whole number, got 1.5"]),
    Case(
        "two_workers_for_four", "cluster.num_workers=2", ["at most cluster.num_workers=2, got [4]", "or none for the"]
    ),
    Case("unknown_expert_aggregates", "aggregator.expert=Nobody", ["aggregator.expert must be one of", "got 'Nobody'"]),
    Case("experts_aggregate", "aggregator.expert=[GLM]", ["aggregator.expert must be a string or null, got ['GLM']"]),
    Case(
        "no_room_to_write", "aggregator.min_output_tokens=0", ["aggregator.min_output_tokens must be at least 1, got 0"]
    ),
    Case(
        "comparison_not_there",
        "aggregator.comparison=no.such.function",
        ["aggregator.comparison must be importable, got 'no.such.function'", "No module named 'no'"],
    ),
    Case(
        "comparison_not_called",
        "aggregator.comparison=math.pi",
        ["comparison must be something that can be called, got 'math.pi'"],
    ),
    Case(
        "comparison_of_a_number", "aggregator.comparison=5", ["aggregator.comparison must be a string or null, got 5"]
    ),
    Case(
        "comparison_of_one_answer",
        "aggregator.comparison=json.dumps",
        ["aggregator.comparison must take two answers, got 'json.dumps'", "too many positional arguments"],
    ),
    Case("aggregator_without_a_name", "aggregator.name=null", ["aggregator.name must be a string, got None"]),
    Case(
        "settings_of_no_aggregator",
        "aggregator=none\n+aggregator.tp_degrees=[4]",
        ["aggregator.tp_degrees must be a key of the configuration, one of ['name'] there", "got [4]"],
    ),
    Case(
        "added_key_of_the_aggregator",
        "+aggregator.foo=1",
        ["aggregator.foo must be a key of the configuration, one of ["],
    ),
    Case(
        "nobody_aggregates",
        "workload.aggregator=null\n~pool.aggregator",
        ["aggregator.expert must be given, or workload.aggregator or pool.aggregator", "aggregator=none"],
    ),
    jsonl(
        "pool_without_an_aggregator", LINE, ["aggregator.expert must be given", "aggregator=none"], "~pool.aggregator"
    ),
    jsonl(
        "aggregator_of_another_pool",
        LINE,
        ["pool.aggregator must be one of the pool ['SmolLM2', 'QwenHalf'], got 'Nobody'"],
        "pool.aggregator=Nobody",
    ),
    Case("aggregator_of_a_number", "workload.aggregator=5", ["workload.aggregator must be one of the pool", "got 5"]),
    Case(
        "unknown_key_of_a_workloads_aggregator",
        "+workload.aggregator.foo=1",
        ["workload.aggregator must be one of the pool ['LlamaR1', ", "got {'foo': 1}"],
    ),
    Case(
        "aggregator_without_lengths",
        "world.merged_tokens.LlamaR1=null",
        ["world.merged_tokens.LlamaR1 must be a mapping, got None"],
    ),
    Case(
        "aggregator_that_writes_nothing",
        "world.merged_tokens.LlamaR1.mean.value=0",
        ["world.merged_tokens.LlamaR1: mean must be at least 1, got 0"],
    ),
    Case("aggregators_profile_not_there", "profile.aggregator_path=TMP/none.json", ["TMP/none.json: cannot be read"]),
    Case(
        "aggregators_profile_lacks_it",
        "profile.aggregator_path=TMP/p.json",
        ["profile 'mine' has no entry for expert 'LlamaR1' on 4 x a100_80gb"],
        {"p.json": '{"source": "mine", "entries": []}'},
    ),
    Case(
        "aggregator_larger_than_the_gpu",
        "aggregator=dp\naggregator.expert=QwenR1\nhardware.memory_gib=30\npool.experts.QwenR1.context_tokens=999999",
        ["expert QwenR1 must fit into tp_degree=1 x a100_80gb", "context_tokens=999999"],
    ),
]
QUESTIONS = [
    Case(
        "unknown_part", "workload.part=nonsense", ["workload.part must be one of ['test', 'calibration']", "'nonsense'"]
    ),
    Case("one_option", "workload.num_options=1", ["workload.num_options must be at least 2, got 1"]),
    Case("more_options_than_letters", "workload.num_options=30", ["workload.num_options must be at most 26, got 30"]),
    Case(
        "no_calibration_questions",
        "workload.part=calibration\nworkload.num_calibration_questions=0",
        ["workload.num_calibration_questions must be at least 1, got 0"],
    ),
    Case(
        "negative_discrimination",
        "world.answers.discrimination.value=-1",
        ["world.answers.discrimination must be at least 0, got -1"],
    ),
    Case(
        "loading_above_one",
        "world.answers.length_loading.value=1.5",
        ["world.answers.length_loading must be at most 1, got 1.5"],
    ),
    Case("ability_of_nan", "world.answers.mean_ability.value=nan", ["mean_ability.value must be finite, got nan"]),
    Case("answers_lack_a_key", "~world.answers.deference", ["world.answers.deference must be given", "got None"]),
    Case(
        "unknown_key_of_answers",
        "+world.answers.foo=1",
        ["world.answers.foo must be a key of the configuration, one of ["],
    ),
    Case(
        "answer_parameter_without_source",
        "world.answers.deference=0.5",
        ["world.answers.deference must be {value: NUMBER, source: one of", "got 0.5"],
    ),
    Case(
        "answer_parameter_of_unknown_source",
        "world.answers.deference.source=guess",
        ["world.answers.deference.source must be one of", "got 'guess'"],
    ),
    Case(
        "one_ability_for_all",
        "world.answers.ability_by_expert=3",
        ["world.answers.ability_by_expert must be a group of the configuration", "got 3"],
    ),
    Case(
        "ability_without_source",
        "world.answers.ability_by_expert.GLM=3",
        ["world.answers.ability_by_expert.GLM must be {value: NUMBER", "got 3"],
    ),
    Case(
        "no_answers_for_a_gate",
        "world.answers=null",
        ["world.answers must be given where a gate reads simulated answers, got null", "aggregator=none"],
    ),
    Case("answers_of_a_number", "world.answers=5", ["world.answers must be a group", "got 5"]),
    Case(
        "nothing_visible",
        "world.answers.visible_tokens.value=0",
        ["world.answers.visible_tokens.value must be at least 1, got 0"],
    ),
]
CASES = [*GATES, *AGGREGATORS, *QUESTIONS]
IN_A_PROCESS = ("unknown_gate", "answers_lack_a_key")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_second_stage_is_refused_with_a_message(case: Case, tmp_path: Path) -> None:
    outcome = run_point(*write_files(case, tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, case.says, tmp_path)
    assert outcome.out == "", "no work was started"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_command_with_a_bad_second_stage_fails(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    outcome = run_process(*write_files(case, tmp_path), cwd=tmp_path)
    assert_refused(outcome, case.says, tmp_path)
    assert outcome.out == ""


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 75


@pytest.mark.slow
def test_a_bad_gate_does_not_stop_a_sweep_and_fails_it(tmp_path: Path) -> None:
    outcome = run_here(
        "-m", *SMALL, *QUICK, "scheduler=round_robin", "gate.tau=0,1", f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra:job.num}",
    )  # fmt: skip
    assert outcome.status == 2
    assert "error: 0: gate.tau must be above 0, got 0" in outcome.err
    assert "Traceback" not in outcome.err
    assert [is_complete(tmp_path / number) for number in "01"] == [False, True]
