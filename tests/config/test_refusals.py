"""What the configuration refuses before any work, in tables: overrides, and what the message says of field and value.

Limits of types are tested with the types (core, workloads, planning, pipelines, sim); here is each field that the
configuration reads, and what does not go together. Settings without an effect are in test_effects.py, what a command
adds to a message in tests/commands/test_bad_inputs.py. TMP is the folder of the files below.
"""

import json
from pathlib import Path

import pytest

from mosaic.config.errors import explain_error, is_bad_input
from tests.calibration_questions import make_question, save_answers
from tests.commands.command_line import DEMO, QUICK, SMALL, prepare
from tests.config.test_wiring import NODES

FEW = (*SMALL, *QUICK)
MINE = (*DEMO, "workload.path=TMP/good.jsonl", "aggregator=dp")
LIVE = ("workload=file", "pool=demo", "workload.path=TMP/texts.jsonl", "cluster=local", "backend=vllm")
SERVED = (*LIVE[:-1], "backend=endpoint", "cluster.num_workers=1")
EXIT = (*FEW, "cluster.num_workers=2", "aggregator=dp", "gate=never")
BUDGETS = ("workload=gpqa", "cluster.num_workers=2", "aggregator=dp", *QUICK)
BOTH = (*BUDGETS, "pipeline.budgets=calibrated", "pipeline.hedge=calibrated")
SERVER = "{base_url: http://localhost:8000/v1, expert: QwenHalf, model: m}"
BY_DEGREE = "aggregator.scheduler_by_degree"

LINE = {"id": "a", "question": "Is 7 prime?", "experts": ["SmolLM2", "QwenHalf"]}
CONTENTS = {
    "good.jsonl": [LINE],
    "texts.jsonl": [{"id": f"q{i}", "question": f"What is {i} plus 1?", "experts": ["QwenHalf"] * 3} for i in range(3)],
    "empty.jsonl": [],
    "hello.jsonl": [LINE, "hello"],
    "plan.json": ["hello"],
    "nobody.jsonl": [LINE | {"experts": ["SmolLM2", "Nobody"]}],
    "long.jsonl": [{"id": "a", "prompt_tokens": 5000, "experts": ["SmolLM2"]}],
    "routed.jsonl": [{"id": "a", "question": "Is 7 prime?", "skills": ["math"]}],
    "empty_line.jsonl": [{}],
    "list.json": [[1]],
    "profile.json": [{"source": "mine", "entries": []}],
    "small.jsonl": [{"id": "a", "prompt_tokens": 100, "experts": ["Qwen"]}],
}
"""Lines of JSON, and texts that are none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files that the tables name."""
    made = tmp_path_factory.mktemp("refused")
    for name, lines in CONTENTS.items():
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (made / name).write_text("".join(f"{text}\n" for text in texts))
    save_answers(made, [make_question("c")])
    return made


SPARSE = "num_experts: 2, num_active_experts: 1, expert_ffn_size: 8"
RANKS = f"aggregator=none; hardware=rtxpro6000; +pool.experts.QwenHalf={{dp_attention: true, shape: {{{SPARSE}}}}}"
UNKNOWN = [
    ("cluster=h100x8", "cluster must be one of ... got 'h100x8'"),
    ("gate=nonsense", "gate must be one of ... 'calibrated' ... 'weighted' ... got 'nonsense'"),
    ("aggregator=nonsense", "aggregator must be one of ... 'auto' ... got 'nonsense'"),
    ("workload=mmlu", "workload must be one of ... 'mmlu_pro' ... got 'mmlu'"),
    ("costs=free", "costs must be one of ['affine', 'paper', 'piecewise'], got 'free'"),
    ("workload.path=q.jsonl", "workload.path must be a key ... 'slots'"),
    ("gate.foo=1", "gate.foo must be a key of the configuration, one of ['tau']"),
    ("+backend.foo=1", "backend.foo must be a key of the configuration, one of ['max_num_seqs',"),
    ("+scheduler.foo=1", "scheduler got an unexpected keyword argument 'foo'"),
    ("+pool.experts.GLM.foo=1", "pool.experts.GLM got an unexpected ... 'foo'"),
    ("pool.experts.LlamaR1.kv={budget: 64}", "pool.experts.LlamaR1 ... budget"),
    ("gate=never; +gate.tau=1", "gate got an unexpected keyword argument 'tau'"),
    ("+aggregator.foo=1", "aggregator.foo must be a key of the configuration, one of ["),
    ("+world.answers.foo=1", "world.answers.foo must be a key of the configuration, one of ["),
    ("+plan.name=x", "plan.name must be a key of the configuration, one of ['path'] there"),
    ("+profile.size=3", "profile.size must be a key of the configuration, one of ['seed',"),
    ("+pool.output_tokens={}", "pool.output_tokens must be a key of the configuration, one of ['experts',"),
    ("+hardwares=a", "hardwares must be a key of the configuration, one of ['seed', 'question_seed', 'plan',"),
    ("+pipeline.width=3", "pipeline.width must be a key of the configuration, one of"),
    ("+backend.loading={device: gpu}", "backend.loading must be a key of the configuration, one of ['max_num_seqs',"),
    ("+backend.is_alone=true", "backend.is_alone must be a key ... 'experts_per_gpu'] there, got True"),
    ("+backend.order=mixed; backend=none", "backend.order must be a key of the configuration, left out: there"),
    ("~gate", "gate must be given, got None"),
    ("~aggregator", "aggregator must be given, got None"),
    ("~world.answers.deference", "world.answers.deference must be given ... got None"),
    ("plan=mine.json", "plan must be a group of the configuration ... got 'mine.json'"),
    ("pool.experts.GLM=null", "pool.experts.GLM must be a group ... got None"),
    ("world.answers=5", "world.answers must be a group ... got 5"),
    ("world.answers.ability_by_expert=3", "world.answers.ability_by_expert must be a group of the ... got 3"),
    ("scheduler._target_=mine.Best", "scheduler._target_ must be importable ... 'mine.Best'"),
    ("gate._target_=mine.Gate", "gate._target_ must be importable, got 'mine.Gate'"),
]
"""Groups, choices and keys that the configuration lacks, or has too many of; Hydra's own words: test_bad_inputs.py."""
VALUES = [
    ("backend.name=tpu", "backend.name must be sim, as mosaic.config.sites.simulated is, got 'tpu'"),
    ("profile.max_batch_frac=0", "profile.max_batch_frac must be above 0, got 0"),
    ("profile.length_error=0.9", "profile.length_error must be at least 1, got 0.9"),
    ("profile.length_error=much", "profile.length_error must be a number, got 'much'"),
    ("seed=abc", "seed must be a whole number, got 'abc'"),
    ("profile.seed=x", "profile.seed must be a whole number, got 'x'"),
    ("profile.path=5", "profile.path must be a string, got 5"),
    ("plan.path=7", "plan.path must be a string, got 7"),
    ("profile.sweep.shard_sizes=[128]", "must be at least two sizes, got (128,)"),
    ("workload.slots.Gemma=-1", "workload.slots.Gemma must be at least 0, got -1"),
    ("workload.slots=null", "workload.slots must be a mapping ... got None"),
    ("scheduler.time_limit_s=inf", "scheduler.time_limit_s must be finite, got inf"),
    ("cluster.num_workers=0", "num_workers must be at least 1, got 0"),
    ("backend.order=foo", "order must be one of ['prefill_first', 'chunked', 'mixed'], got 'foo'"),
    ("backend.keep=all", "backend.keep must be one of"),
    ("backend.experts_per_gpu=0", "backend.experts_per_gpu must be at least 1"),
    ("backend.keep=engines; hardware.host=null", "hardware.host must be given"),
    ("backend.keep=engines; hardware.host.load_fixed_s=-1", "load_fixed_s must be"),
    ("gate.tau=nan", "gate.tau must be finite, got nan"),
    ("gate=calibrated; gate.calibration=5", "gate.calibration must be a string, got 5"),
    ("gate=calibrated", "gate.calibration must be given"),
    ("gate=weighted", "gate.calibration must be given"),
    ("pool.experts.GLM.shape=null", "expert GLM: shape must be given where it is loaded, simulated or planned"),
    ("aggregator.tp_degrees=[]", "aggregator.tp_degrees must be at least one value, got []"),
    ("aggregator.tp_degrees=[0]", "aggregator.tp_degrees must be at least 1, got 0"),
    ("aggregator.tp_degrees=4", "tp_degrees must be a list of whole numbers, got 4"),
    ("aggregator.tp_degrees=abc", "tp_degrees must be a list of whole numbers, got 'abc'"),
    ("aggregator.tp_degrees=[1.5]", "aggregator.tp_degrees must be a whole number, got 1.5"),
    ("aggregator.expert=[GLM]", "aggregator.expert must be a string, got ['GLM']"),
    ("aggregator.min_output_tokens=0", "aggregator.min_output_tokens must be at least 1, got 0"),
    ("aggregator.name=null", "aggregator.name must be a string, got None"),
    ("aggregator.comparison=5", "aggregator.comparison must be a string, got 5"),
    ("aggregator.comparison=no.such.function", "comparison must be importable, got 'no.such.function' ... No module"),
    ("aggregator.comparison=math.pi", "comparison must be something that can be called, got 'math.pi'"),
    ("aggregator.comparison=json.dumps", "aggregator.comparison must take two answers, got 'json.dumps' ... too many"),
    (
        "aggregator=dp; aggregator.scheduler_by_degree={1: best}",
        "by_degree.1 must be one of ['data_parallel'], got 'best'",
    ),
    *(
        (
            f"~{BY_DEGREE}; +{BY_DEGREE}={{{key}: data_parallel}}",
            f"by whole numbers that are at least 1, got [{it}]",
        )
        for key, it in (("4.9", "4.9"), ("0", "0"), ("-1", "-1"), ("true", "True"), ("x", "'x'"))
    ),
    (
        "+aggregator.scheduler_by_degree={4: data_parallel}; +aggregator.scheduler_by_degree.4=data_parallel",
        "aggregator.scheduler_by_degree must be such that each number is given once",
    ),
    ("aggregator.scheduler_by_degree=best", "by_degree must be a group ... with keys, got 'best'"),
    ("aggregator.costs=free", "aggregator.costs must be one of ['affine'], got 'free'"),
    ("world.output_tokens.GLM.mean=300", "GLM.mean must be {value ... got 300"),
    ("~world.output_tokens.GLM.sigma", "output_tokens.GLM: keys must be ... 'mean'"),
    ("world.length_scale={value: -1, source: assumed}", "length_scale.value ... above 0"),
    ("world.merged_tokens.LlamaR1=null", "world.merged_tokens.LlamaR1 must be a mapping, got None"),
    ("world.merged_tokens.LlamaR1.mean.value=0", "world.merged_tokens.LlamaR1: mean must be at least 1, got 0"),
    ("world.answers.discrimination.value=-1", "world.answers.discrimination must be at least 0, got -1"),
    ("world.answers.mean_ability.value=nan", "mean_ability.value must be finite, got nan"),
    ("world.answers.deference=0.5", "world.answers.deference must be {value: NUMBER, source: one of ... got 0.5"),
    ("world.answers.deference.source=guess", "world.answers.deference.source must be one of ... got 'guess'"),
    ("world.answers.ability_by_expert.GLM=3", "world.answers.ability_by_expert.GLM must be {value: NUMBER ... got 3"),
    ("world.answers.visible_tokens.value=0", "world.answers.visible_tokens.value must be at least 1, got 0"),
]
"""One or two of each field that the configuration reads."""
TOGETHER = [
    ("hardware=rtx4090; aggregator=none", "expert Gemma must fit into tp_degree=1 x rtx4090"),
    ("workload=gpqa; hardware=rtxpro6000", "tp_degrees must be degrees that rtxpro6000 was measured at, got [4]"),
    ("workload=gpqa; pool=demo; aggregator=none", "workload gpqa, call ... : expert must be one of the pool "),
    ("pool=llama3_8b; aggregator=none", "workload mmlu_pro, call ... : expert must be one of the pool "),
    ("workload=gpqa; pool=llama3_8b", "workload.aggregator must be one of the pool ['llama3_8b'], got 'QwenR1'"),
    ("pool.experts.GLM.tp_degree=8", "expert GLM: tp_degree must be at most num_workers=4, got 8"),
    ("pool.experts.GLM.name=Qwen", "pool.experts: name must be unique, got 'Qwen' twice"),
    ("hardware.memory_gib=10", "expert Gemma must fit ... hardware.memory_gib=10 ... 17.2 GiB of weights ... 8192"),
    (
        "backend.order=mixed; pool.experts.LlamaR1.kv={policy: flexicache}",
        "engine.enable_prefix_caching must be false with expert LlamaR1's kv=flexicache",
    ),
    (
        "+pool.experts.LlamaR1.dp_attention=true",
        "expert LlamaR1: dp_attention must be false for a model without experts inside (shape.num_experts=0)",
    ),
    ("world.answers=null", "world.answers must be given where a gate reads simulated answers, got null"),
    ("aggregator.tp_degrees=[8]", "must be at most cluster.num_workers=4, got [8] ... aggregator=dp"),
    ("cluster.num_workers=2", "at most cluster.num_workers=2, got [4] ... or none for the"),
    ("aggregator=none; +aggregator.tp_degrees=[4]", "aggregator.tp_degrees must be a key ... one of ['name'] there"),
    ("workload.aggregator=null; ~pool.aggregator", "aggregator.expert must be given, or workload.aggregator or pool"),
    ("workload.aggregator=5", "workload.aggregator must be one of the pool ... got 5"),
    ("+workload.aggregator.foo=1", "workload.aggregator must be one of the pool ['LlamaR1', ... got {'foo': 1}"),
    ("profile.length_error=1.5; profile.path=x.json", "length_error must be 1 where profile.path='x.json'"),
    ("backend.experts_per_gpu=2; backend.load_ahead_gib=9", "backend.load_ahead_gib must be null where"),
    ("backend=vllm", "workload mmlu_pro: question ... must have a text where models really answer, got None: "),
    ("+gate.scope=node", "gate.scope must be gate: an early exit is a choice of the group exit"),
]
"""What does not go together."""
FILES = [
    ("workload=file; pool=demo", "workload.path must be given"),
    ("workload=file; pool=demo; workload.path=TMP/none.jsonl", "TMP/none.jsonl: must be a readable file (No such"),
    ("workload=file; pool=demo; workload.path=TMP", "TMP: must be a readable file (Is a directory)"),
    ("+experiment=replay; workload.path=TMP/empty_line.jsonl", "TMP/empty_line.jsonl, line 1: "),
    ("profile.path=TMP/list.json", "profile TMP/list.json: the file: Expected `object`, got `array`"),
    ("world.output_tokens=TMP/calls.parquet", "output_tokens: TMP/calls.parquet must be a readable parquet file"),
    ("plan.path=TMP/none.json", "plan TMP/none.json: cannot be read (No such file"),
    ("plan.path=TMP/plan.json", "TMP/plan.json: not JSON (JSON is malformed"),
    ("gate=calibrated; gate.calibration=TMP/plan.json", "TMP/plan.json: must be a parquet table of calibration"),
    (
        "gate=calibrated; gate.calibration=TMP/answers.parquet",
        "must hold answers of what runs here, got TMP/answers.parquet ... is 'letters' there and 'mmlu_pro' here",
    ),
]
"""Files that are not there, or of another kind."""
OF_QUESTIONS = [
    ("workload.path=TMP/empty.jsonl", "TMP/empty.jsonl: must be a file with at least one question"),
    ("workload.path=TMP/hello.jsonl", "TMP/hello.jsonl, line 2: must be JSON, got 'hello'"),
    ("workload.path=TMP/nobody.jsonl", "TMP/nobody.jsonl, line 1: expert must be one of the pool ... got 'Nobody'"),
    (
        "workload.path=TMP/long.jsonl",
        "TMP/long.jsonl, line 1: prompt_tokens must be below context_tokens=2048",
    ),
    ("~pool.aggregator", "aggregator.expert must be given ... aggregator=none"),
    ("pool.aggregator=Nobody", "pool.aggregator must be one of the pool ['SmolLM2', 'QwenHalf']"),
    ("workload.path=TMP/routed.jsonl; workload.profiles=TMP/routed.jsonl", "skill profiles TMP/routed.jsonl"),
    (
        "pool=hybrid; workload.path=TMP/small.jsonl; hardware=rtx4090",
        "expert LlamaR1 must fit into tp_degree=1 x rtx4090",
    ),
    (NODES, "aggregator must be none beside pipeline.nodes"),
    ("aggregator=none; pipeline.nodes=5", "pipeline.nodes must be a group of the configuration, with keys, got 5"),
    ("aggregator=none; pipeline.nodes={a: {expert: x}}", "pipeline.nodes.a.expert must be a key of"),
    ("aggregator=none; pipeline.nodes={a: {experts: X}}", "pipeline.nodes.a.experts must be a list of strings, got"),
    ("aggregator=none; pipeline.nodes={a: {experts: [X]}}", "nodes.a.experts must be of the pool ... , got 'X'"),
    ("aggregator=none; pipeline.nodes={a: 7}", "pipeline.nodes.a must be a group of the configuration ... , got 7"),
]
"""Of a question file of the user's own, and of a pipeline."""
STEERED = [
    ("pipeline.barrier=maybe", "pipeline.barrier must be true or false, got 'maybe'"),
    ("pipeline.quorum=2", "pipeline.quorum must be true or false, got 2"),
    ("pipeline.reactions=[quorum,luck]", "pipeline.reactions must be one of ['quorum'"),
    ("pipeline.prefill_ahead=true", "prefill_ahead must be false unless pipeline.overlap=true or pipeline.barrier=fal"),
    (
        "pipeline.overlap=true; pipeline.prefill_ahead=true",
        "pipeline.prefill_ahead must be false where engines cache no prefixes",
    ),
    (
        "backend.order=mixed; aggregator=none; pipeline.prefill_ahead=true",
        "pipeline.prefill_ahead must be false where no call reads others",
    ),
    ("topology.layers=[9,3,1]; topology.fan_in=4", "fan_in must be such that the 3 agents of layer 2 read the 9"),
    ("topology.layers=[9,3,1]; topology.fan_in=[3]", "topology.fan_in must be a number by upper layer"),
    ("topology.fan_in=3", "topology.fan_in must be null where topology.layers is null, got 3"),
    (
        "topology.layers=[3,3,1]; topology.fan_in=[true,1]",
        "topology.fan_in[0] must be a whole number or null, got True",
    ),
    ("topology.layers=[3,3,1]; topology.fan_in=[x,1]", "topology.fan_in[0] must be a whole number or null, got 'x'"),
    ("topology.layers=[3,1]; topology.fan_in=[1.5]", "topology.fan_in[0] must be a whole number or null, got 1.5"),
    ("topology.layers=3", "topology.layers must be a list, got 3"),
    ("topology.layers=[3]", "topology.layers must be at least two: aggregator=none runs one alone"),
    ("topology.layers=[3,x]", "topology.layers[1] must be a whole number, got 'x'"),
    ("topology.layers=[3,[X]]", "topology.layers, layer 2 of 2 must be of the pool [ ... , got 'X'"),
    ("topology.layers=[3,[]]", "layer 2 of 2 must be at least one agent, got []"),
    ("topology.layers=[3,true]", "topology.layers[1] must be a whole number, got True"),
    ("topology.layers=[0,1]", "topology.layers[0] must be at least 1, got 0"),
    ("topology=tree; topology.fan_in=x", "topology.fan_in must be a whole number, got 'x'"),
    ("topology=tree; topology.min_output_tokens=0", "topology.min_output_tokens must be at least 1"),
    ("topology=tree; +topology.depth=3", "topology.depth must be a key of the configuration"),
    ("topology=tree; pipeline.nodes={a: null}", "pipeline.nodes must be null beside topology=tree"),
    ("topology=tree; workload.aggregator=null; pool.aggregator=null", "must name the experts of its last"),
    ("topology=tree; pipeline.budgets=calibrated", "pipeline.budgets"),
]
"""Reactions, topologies and schedulers, of a small workload."""
EXITS = [
    ("exit=agreement; gate=majority", "exit=agreement: gate must be never"),
    ("exit=agreement; exit.tau=0.4", "exit.tau must be ... above 0.5 ... , got 0.4"),
    ("exit=agreement; pipeline.quorum=true", "pipeline.quorum must be left out"),
    ("exit=faster_moa; exit.similarity=embeddings; exit.embedder=X", "exit.embedder must be ... , got 'X'"),
    (
        "exit=faster_moa; exit.similarity=embeddings; exit.embedder=Qwen",
        "exit.similarity must be answers where calls have no texts, got embeddings",
    ),
    ("exit=faster_moa; exit.embedder=Qwen", "exit.embedder must be left out ... answers are compared"),
    ("exit=never; +exit.tau=1", "exit.tau must be a key of the configuration"),
    ("exit=calibrated; exit.calibration=none.parquet", "none.parquet"),
]
PROMISES = [
    ("", "pipeline.promise.calibration must name calibration answers"),
    ("pipeline.budgets=yes", "pipeline.budgets must be one of ['calibrated'], got 'yes'"),
    ("aggregator=none", "pipeline.budgets must be null where nothing is aggregated"),
    (
        "exit=faster_moa; gate=never; pipeline.promise.calibration=x",
        "pipeline.budgets must be null with an exit that reads only some answers, got 'faster_moa'",
    ),
    ("pipeline.promise.calibration=x; pipeline.promise.risk_frac=0", "promise.risk_frac must be above 0, got 0"),
    ("pipeline.promise.calibration=x; pipeline.promise.fit_frac=1", "promise.fit_frac must be below 1, got 1"),
    ("pipeline.promise=3", "pipeline.promise must be a group of the configuration, with keys"),
]
ENGINES = [
    ("backend.mode=dream", "backend.mode must be one of ['live', 'replay'], got 'dream'"),
    ("backend.device=tpu", "backend.device must be one of ['auto', 'gpu', 'cpu'], got 'tpu'"),
    ("+backend.tempo=2", "backend.tempo must be a key of the configuration, one of ["),
    ("~backend.mode", "backend.mode must be given, got None"),
    ("backend.engine=fast", "backend.engine must be a group of the configuration"),
    ("backend.engine.max_num_seqs=0", "max_num_seqs must be"),
    ("backend.device=cpu; backend.engine.block_size=16", "engine.block_size must be a multiple of 32 on CPU"),
    ("backend.engine.load_format=dummy", "backend.engine.load_format must be auto in live mode"),
    ("+backend.engine.loading={dtype: float16}", "backend.engine.loading must be a key of the configuration, one of ["),
    (
        "+backend.engine.load_formt=dummy",
        "backend.engine.load_formt must be ... 'scheduler_reserve_full_isl', 'dtype', 'load_format', 'enforce_eager', "
        "'trust_remote_code'] there, got 'dummy'",
    ),
    ("+backend.patience.servers={max_wait_s: 3}", "patience.servers must be a key ... 'max_restarts'] there"),
    ("backend.patience.max_retries=-1", "patience.max_retries must be"),
    (
        "+backend.patience.mood=good",
        "backend.patience.mood must be a key of the configuration, one of ['load_",
    ),
    ("backend.num_calibration_questions=0", "backend.num_calibration_questions must be"),
    (RANKS, "expert QwenHalf: dp_attention must be false on real engines, got True"),
]
SERVERS = [
    ("", "backend.endpoints must be given"),
    (f"backend.endpoints=[{SERVER}]; {RANKS}", "expert QwenHalf: dp_attention must be false on real engines, got True"),
    ("backend.endpoints={a: b}", "backend.endpoints must be a list, got"),
    ("backend.endpoints=[5]", "endpoints[0] must be a group of the configuration, with keys, got 5"),
    (
        f"backend.endpoints=[{SERVER}]; cluster.num_workers=2",
        "backend.endpoints must be one for each worker, cluster.num_workers=2, got 1",
    ),
    (
        f"backend.endpoints=[{SERVER}]; aggregator.expert=SmolLM2",
        "backend.endpoints must be servers of every expert that is called; they serve ['QwenHalf'], got 'SmolLM2'",
    ),
    ("backend.endpoints=[{base_url: here, expert: QwenHalf, model: m}]", "base_url must be a URL"),
    (
        f"backend.endpoints=[{SERVER.replace('QwenHalf', 'Nobody')}]",
        "backend.endpoints: expert must be one of the pool",
    ),
]


TABLES = (
    ((), UNKNOWN), ((), VALUES), ((), TOGETHER), ((), FILES), (MINE, OF_QUESTIONS), (FEW, STEERED), (EXIT, EXITS),
    (BOTH, PROMISES), (LIVE, ENGINES), (SERVED, SERVERS),
)  # fmt: skip
"""Each with what all its rows choose."""


@pytest.mark.parametrize(("base", "overrides", "says"), [(base, *row) for base, table in TABLES for row in table])
def test_what_is_wrong_is_refused_with_field_rule_and_value(
    base: tuple[str, ...], overrides: str, says: str, folder: Path
) -> None:
    given = [override.replace("TMP", str(folder)) for override in (*base, *overrides.split("; ")) if override]
    with pytest.raises(Exception) as refused:  # noqa: PT011
        prepare(*given)
    assert is_bad_input(refused.value)
    said = explain_error(refused.value)
    assert "\n" not in said
    for fragment in says.replace("TMP", str(folder)).split(" ... "):
        assert fragment in said
