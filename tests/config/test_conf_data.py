"""The committed experts, pools, workloads and lengths: they compose, instantiate and match the published tables."""

import csv
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mosaic.core.workload import Expert, Family, Workload
from sim.world.lengths import length_distributions
from tests.factories import SLOTS

CONF = Path(__file__).resolve().parents[2] / "conf"
NUM_WORKERS = 4

MMLU_PRO_ORDER = ["Gemma", "QwenR1", "Qwen", "LlamaR1", "Exaone", "GLM"]
"""As published; where the order is unknown the most popular comes first."""
NUM_QUESTIONS = {"mmlu_pro": 2100, "medmcqa": 4183, "gpqa": 198}
NUM_OPTIONS = {"mmlu_pro": {10: 1711}, "medmcqa": {4: 4183}, "gpqa": {4: 198}}
"""How many questions have the most usual number of options."""
NUM_CALIBRATION_QUESTIONS = {"mmlu_pro": 350, "medmcqa": 504}
"""Published; GPQA's is not."""
AGGREGATORS = {"mmlu_pro": "LlamaR1", "medmcqa": "Exaone", "gpqa": "QwenR1"}
NO_ARGUMENTS = ("aggregator", "report")
"""Keys of a workload that make no questions."""
KV_BYTES_PER_TOKEN = {
    "LlamaR1": 131_072, "QwenR1": 57_344, "Gemma": 344_064, "Exaone": 131_072, "GLM": 40_960, "Qwen": 57_344,
}  # fmt: skip
NUM_PARAMETERS = {"LlamaR1": 8.03e9, "QwenR1": 7.62e9, "Gemma": 9.24e9, "Exaone": 7.82e9, "GLM": 9.40e9, "Qwen": 7.62e9}


def compose_group(group: str, *overrides: str) -> dict[str, Any]:
    """Compose one group by itself and resolve it."""
    return deepcopy(composed_once(group, *overrides))


@cache
def composed_once(group: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chooses = ["+costs=paper"] if group.startswith("pool=") else []  # for pools that bring other costs along
        config = compose(None, [*chooses, f"+{group}", "+seed=0", "+question_seed=0", *overrides])
    return OmegaConf.to_container(config, resolve=True)[group.split("=")[0]]  # type: ignore[call-overload,index,no-any-return]


def make_pool(name: str, *overrides: str) -> dict[str, Expert]:
    return instantiate(compose_group(f"pool={name}", *overrides)["experts"], _convert_="all")  # type: ignore[no-any-return]


def make_workload(config: dict[str, Any]) -> Workload:
    source = {key: value for key, value in config.items() if key not in NO_ARGUMENTS}
    return instantiate(source, _convert_="all")  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", sorted(CONF.glob("pool/*.yaml")), ids=lambda path: path.stem)
def test_every_pool_instantiates_to_experts_under_their_own_names(path: Path) -> None:
    pool = make_pool(path.stem)
    assert pool
    assert all(isinstance(expert, Expert) and name == expert.name for name, expert in pool.items())


@pytest.mark.parametrize("path", sorted(CONF.glob("pool/*.yaml")), ids=lambda path: path.stem)
def test_only_the_papers_pools_are_planned_by_the_papers_costs(path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen, given = (compose("config", [f"pool={path.stem}", *more]).costs for more in ((), ("costs=piecewise",)))
    is_paper = path.stem in ("hybrid", "instruct", "reasoning")
    assert chosen._target_ == f"mosaic.planning.{'Paper' if is_paper else 'Affine'}Costs"
    assert given._target_ == "mosaic.planning.PiecewiseCosts"


@pytest.mark.parametrize("path", sorted(CONF.glob("expert/*.yaml")), ids=lambda path: path.stem)
def test_every_expert_is_of_a_plausible_size_for_its_shape(path: Path) -> None:
    expert = instantiate(compose_group(f"expert={path.stem}"), _convert_="all")
    shape = expert.shape
    attention = shape.hidden_size * shape.head_dim * 2 * (shape.num_query_heads + shape.num_kv_heads)
    ffn_size = shape.num_shared_experts * shape.expert_ffn_size if shape.num_experts else shape.ffn_size
    router = shape.hidden_size * shape.num_experts
    blocks = shape.num_layers * (attention + router + 3 * shape.hidden_size * ffn_size)
    assert shape.num_block_parameters == pytest.approx(blocks, rel=0.01)


def test_the_hybrid_pool_is_the_published_table() -> None:
    pool = make_pool("hybrid")
    assert {name: expert.shape.kv_bytes_per_token() for name, expert in pool.items()} == KV_BYTES_PER_TOKEN
    assert {name: expert.shape.num_parameters for name, expert in pool.items()} == NUM_PARAMETERS
    reasoning = {name for name, expert in pool.items() if expert.family is Family.REASONING}
    assert reasoning == {"LlamaR1", "QwenR1"}
    for name, expert in pool.items():
        assert expert.max_output_tokens == (32768 if name in reasoning else 4096)
        assert expert.context_tokens == (8192 if name == "Gemma" else 32768)
        assert expert.temperature == 0.7
        assert expert.tp_degree == 1


def test_the_hybrid_pool_caps_replicas_as_published() -> None:
    caps = {name: expert.max_replicas or 0 for name, expert in make_pool("hybrid").items()}
    assert all(caps[name] >= 100 * NUM_WORKERS for name in ("LlamaR1", "QwenR1"))
    assert [caps[name] for name in ("Gemma", "Exaone", "GLM", "Qwen")] == [1, 1, 1, 1]


def test_glm_replicates_its_two_heads_on_four_gpus() -> None:
    shape = make_pool("hybrid")["GLM"].shape
    assert shape.kv_bytes_per_token(4) == shape.kv_bytes_per_token(2) == shape.kv_bytes_per_token() // 2


def test_a_pool_is_changed_from_the_command_line() -> None:
    pool = make_pool("hybrid", "pool.experts.Gemma.max_replicas=3", "+expert@pool.experts.Mine=qwen_0_5b")
    assert pool["Gemma"].max_replicas == 3
    assert pool["Mine"].checkpoint == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize("name", list(SLOTS))
def test_published_workloads_hold_the_published_slots_options_and_aggregators(name: str) -> None:
    config = compose_group(f"workload={name}")
    workload = make_workload(config)
    assert workload.name == name
    assert len(workload.questions) == NUM_QUESTIONS[name]
    assert workload.num_calls_by_expert == SLOTS[name]
    order = list(workload.num_calls_by_expert)
    by_popularity = sorted(order, key=SLOTS[name].__getitem__, reverse=True)
    assert order == config["first_seen"] == (MMLU_PRO_ORDER if name == "mmlu_pro" else by_popularity)
    counts = Counter(question.num_options for question in workload.questions)
    assert dict(counts.most_common(1)) == NUM_OPTIONS[name]
    assert config["aggregator"] == AGGREGATORS[name]
    clip_tokens = compose_group(f"world={name}")["merged_tokens"][AGGREGATORS[name]]["clip_tokens"]["value"]
    assert clip_tokens == make_pool("hybrid")[AGGREGATORS[name]].max_output_tokens


def test_the_other_pools_hold_the_published_shares() -> None:
    reasoning = compose_group("workload=mmlu_pro_reasoning")["slots"]
    assert set(reasoning) == set(make_pool("reasoning"))
    assert max(reasoning.values()) / min(reasoning.values()) == pytest.approx(5.46, abs=0.005)
    instruct = compose_group("workload=mmlu_pro_instruct")["slots"]
    assert set(instruct) == set(make_pool("instruct"))
    assert [round(instruct[name] / 6300, 2) for name in ("Gemma", "Qwen")] == [0.53, 0.24]
    assert max(instruct["Llama"], instruct["Granite"]) / 6300 < 0.02
    assert max(instruct.values()) / min(instruct.values()) == pytest.approx(92.4, abs=0.05)


def test_the_other_pools_write_the_published_means() -> None:
    reasoning = length_distributions(compose_group("world=mmlu_pro_reasoning")["output_tokens"])
    means = {name: lengths.mean for name, lengths in reasoning.items()}
    published = {"LlamaR1": 2302, "QwenR1": 2522, "Skywork": 5339, "Stratos": 5822}
    assert {name: means[name] for name in published} == published
    assert fmean(means.values()) == pytest.approx(3289)
    slots = compose_group("workload=mmlu_pro_reasoning")["slots"]
    over_calls = sum(means[name] * count for name, count in slots.items()) / 6300
    assert over_calls == pytest.approx(3301, abs=1), "as the comment beside the slots says"
    config = compose_group("world=mmlu_pro_instruct")
    instruct = length_distributions(config["output_tokens"], length_scale=config["length_scale"])
    slots = compose_group("workload=mmlu_pro_instruct")["slots"]
    assert fmean(instruct[name].mean for name in slots) == pytest.approx(518, abs=0.5)


@pytest.mark.parametrize("name", ["mmlu_pro_reasoning", "mmlu_pro_instruct"])
def test_the_other_pools_answer_the_same_questions(name: str) -> None:
    hybrid, other = (make_workload(compose_group(f"workload={one}")) for one in ("mmlu_pro", name))
    assert [one.prompt_tokens for one in other.questions] == [one.prompt_tokens for one in hybrid.questions]
    assert [one.answer for one in other.questions] == [one.answer for one in hybrid.questions]


@pytest.mark.parametrize("name", list(NUM_CALIBRATION_QUESTIONS))
def test_calibration_questions_are_as_many_as_published_and_others_than_the_batchs(name: str) -> None:
    batch = make_workload(compose_group(f"workload={name}"))
    calibration = make_workload(compose_group(f"workload={name}", "workload.part=calibration"))
    assert len(calibration.questions) == NUM_CALIBRATION_QUESTIONS[name]
    assert not {question.id for question in calibration.questions} & {question.id for question in batch.questions}


@pytest.mark.parametrize("path", sorted(CONF.glob("answers/*.yaml")), ids=lambda path: path.stem)
def test_every_answer_parameter_says_where_it_comes_from(path: Path) -> None:
    config = compose_group(f"answers={path.stem}")
    abilities = config.pop("ability_by_expert")
    is_tiny = path.stem == "tiny"
    assert set(abilities) == (set(make_pool("tiny")) - {"TinyJudge"} if is_tiny else set(make_pool("hybrid")))
    entries = {**config, **abilities}
    assert all(set(entry) == {"value", "source"} for entry in entries.values())
    known = {"measured"} if is_tiny else {"assumed"}
    assert {entry["source"] for entry in abilities.values()} == known, "abilities are not published"
    if path.stem == "assumed":
        assert {entry["source"] for entry in entries.values()} == {"assumed"}, (
            "nothing is fitted to one's own questions"
        )
        carried = compose_group("answers=mmlu_pro")
        assert {key: entry["value"] for key, entry in config.items()} == {key: carried[key]["value"] for key in config}
    else:
        assert config["mean_ability"]["source"] == "fitted", "so skip shares are shown as fitted"


@pytest.mark.parametrize("name", [*SLOTS, "file"])
def test_worlds_have_lengths_for_the_hybrid_pool_within_its_limits(name: str) -> None:
    config = compose_group(f"world={name}")
    lengths = length_distributions(config["output_tokens"], length_scale=config["length_scale"])
    pool = make_pool("hybrid")
    of_logs = make_pool("llama3_8b").keys() | make_pool("qwen3_30b_a3b").keys()
    every = {expert for path in CONF.glob("pool/*.yaml") for expert in make_pool(path.stem)} - of_logs
    assert set(lengths) == (every - {"TinyJudge"} if name == "file" else set(pool)), "a file may be for any pool"
    assert all(lengths[expert].clip_tokens == pool[expert].max_output_tokens for expert in pool)


def test_round_robins_pairs_are_those_of_the_papers_figure() -> None:
    for name, pairs in (
        ("mmlu_pro_reasoning", [{"QwenR1", "Stratos"}, {"OREAL", "DLER"}]),
        ("mmlu_pro_instruct", [{"Gemma", "Granite"}, {"Qwen", "Llama"}]),
    ):
        order = list(make_workload(compose_group(f"workload={name}")).num_calls_by_expert)
        assert [{order[worker], order[worker + NUM_WORKERS]} for worker in (0, 1)] == pairs


def test_output_caps_are_assumed_since_the_paper_has_none() -> None:
    for name in SLOTS:
        config = compose_group(f"world={name}")
        entries = [*config["output_tokens"].values(), *config["merged_tokens"].values()]
        assert {entry["clip_tokens"]["source"] for entry in entries} == {"assumed"}


def test_the_configuration_holds_the_committed_set() -> None:
    with (CONF.parent / "results" / "calibration" / "fits.csv").open(encoding="utf-8") as file:
        committed = next(csv.DictReader(file))
    for workload in ("mmlu_pro", "medmcqa", "gpqa"):
        config = compose_group(f"world={workload}")
        (merged,) = config["merged_tokens"].values()
        assert merged["mean"] == {"value": float(committed[f"{workload}_merged_tokens"]), "source": "fitted"}
        scale = config["length_scale"]
        assert (1.0 if scale is None else scale["value"]) == float(committed[f"{workload}_scale"])
        lengths = config["output_tokens"]
        assert all(entry["mean"]["value"] == float(committed[name]) for name, entry in lengths.items())
        sigmas = {lengths[name]["sigma"]["value"] for name in ("LlamaR1", "QwenR1")}
        assert sigmas == {float(committed["reasoning_sigma"])}
    hardware = yaml.safe_load((CONF / "hardware" / "a100_80gb.yaml").read_text(encoding="utf-8"))
    for key in ("attention_streams", "cpu_per_kv_token_s"):
        assert hardware[key] == float(committed[key])


def test_published_lengths_are_declared_as_published() -> None:
    config = compose_group("world=mmlu_pro")["output_tokens"]
    means = {name: entry["mean"]["value"] for name, entry in config.items() if entry["mean"]["source"] == "published"}
    assert means == {"QwenR1": 3734, "LlamaR1": 3146, "Gemma": 291}


def test_a_file_runs_by_configuration_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a", "question": "x", "experts": ["SmolLM2", "QwenHalf"]}\n')
    workload = make_workload(compose_group("workload=file", f"workload.path={path}"))
    assert workload.num_calls_by_expert == {"SmolLM2": 1, "QwenHalf": 1}
    lengths = length_distributions(compose_group("world=file")["output_tokens"])
    assert {name: lengths[name].clip_tokens for name in make_pool("demo")} == {"SmolLM2": 512, "QwenHalf": 512}
