"""Early quorum on the tiny pool's real vLLM; `test_killed_runs` kills runs with it."""

import json
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel, decode_action
from tests.commands.command_line import TINY, simulated_profiles
from tests.engines.executor_runs import has_vllm
from tests.engines.kept_launcher import run_kept
from tests.run_tables import calls_of, final, responses_of, summary_of

pytestmark = pytest.mark.slow
QUORUM = "pipeline.quorum=true"


def cancelled_of(folder: Path) -> set[tuple]:
    return {key for key, row in calls_of(folder).items() if row["status"] == "cancelled"}


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
@pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py")
def test_on_real_vllm_third_calls_are_cancelled_and_all_else_is_as_without(tmp_path):
    common = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "workload.num_questions=150"]
    common += [*simulated_profiles(tmp_path, *common), "backend=vllm"]
    plain, early = tmp_path / "plain", tmp_path / "early"
    for folder, overrides in ((plain, ()), (early, (QUORUM,))):
        outcome = run_kept(*common, *overrides, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
    assert final(early) == final(plain)
    cancelled, calls = cancelled_of(early), calls_of(early)
    assert calls.keys() == calls_of(plain).keys()
    assert len(cancelled) > 20
    assert all(node == "propose" for _, node, _ in cancelled)
    for key, text in responses_of(early).items():
        assert key in cancelled or text == responses_of(plain)[key]
    summary = summary_of(early)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    assert summary["output_tokens"] < summary_of(plain)["output_tokens"]
    assert 0 < json.loads((early / "meta.json").read_text())["reacting_s"] < summary["end_to_end_s"]
    actions = [decode_action(line) for line in (early / "actions.jsonl").read_bytes().splitlines()]
    told = {tuple(action.command.key) for action in actions if isinstance(action.command, Cancel)}
    assert cancelled <= {(question, node, slot) for question, node, slot in told}
    for question, _, slot in cancelled:
        others = [calls[question, "propose", other] for other in range(3) if other != slot]
        assert len({row["answer"] for row in others} - {None}) == 1, "two agreed"
