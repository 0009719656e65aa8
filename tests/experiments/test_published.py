"""The published numbers."""

import pytest

from experiments.studies.paper_points import BENCHMARKS
from experiments.studies.published import TOKENS_PER_CALL, expert_tokens, fit_target, read_published


def published(quantity: str, workload: str = "mmlu_pro") -> list[float]:
    values: list[float] = read_published().filter(quantity=quantity, workload=workload)["value"].to_list()
    return values


def value(quantity: str, workload: str = "mmlu_pro") -> float:
    (found,) = published(quantity, workload)
    return found


def test_a_fit_reads_what_may_be_fitted_only() -> None:
    assert fit_target("round robin, busy seconds of worker 2") == 165
    with pytest.raises(
        ValueError, match=r"'ILP, speedup of the expert stage' of gpqa must be fitted or built on, got \['predicted'\]"
    ):
        fit_target("ILP, speedup of the expert stage", "gpqa")
    with pytest.raises(ValueError, match="end to end, speedup"):
        fit_target("end to end, speedup", "nothing of that name")
    assert expert_tokens("mmlu_pro") == {"LlamaR1": 3146, "QwenR1": 3734, "Gemma": 291}


def test_only_what_a_fit_reads_is_called_fitted() -> None:
    rows = read_published().select("quantity", "workload", "kind").rows()
    kinds = {(quantity, workload): kind for quantity, workload, kind in rows}
    walls = [kinds["round robin, expert stage", benchmark] for benchmark in BENCHMARKS]
    assert walls == ["follows from fits", "fitted", "fitted"], "MMLU-Pro's four workers are fitted, not its wall"
    for quantity in ("ILP, expert stage", "aggregator at tau = 2/3", "end to end, speedup"):
        assert {kinds[quantity, benchmark] for benchmark in BENCHMARKS} == {"predicted"}


def test_the_round_robin_wall_is_that_of_the_busiest_worker() -> None:
    workers = [value(f"round robin, busy seconds of worker {worker}") for worker in range(4)]
    assert max(workers) == pytest.approx(value("round robin, expert stage"), rel=0.01)
    idle = 1 - sum(workers) / (4 * max(workers))
    assert idle == pytest.approx(value("round robin, idle share of GPU time"), abs=0.01)


@pytest.mark.parametrize("workload", BENCHMARKS)
def test_published_speedups_are_those_of_the_walls(workload: str) -> None:
    before_s, after_s = value("round robin, expert stage", workload), published("ILP, expert stage", workload)[0]
    assert before_s / after_s == pytest.approx(value("ILP, speedup of the expert stage", workload), abs=0.01)
    before_s += value("aggregator, every question", workload)
    after_s += value("aggregator at tau = 2/3", workload)
    assert before_s == pytest.approx(value("end to end, round robin, every question", workload), abs=1)
    assert after_s == pytest.approx(value("end to end, ILP and tau = 2/3", workload), abs=1)
    assert before_s / after_s == pytest.approx(value("end to end, speedup", workload), abs=0.005)


@pytest.mark.parametrize("workload", BENCHMARKS)
def test_more_questions_are_skipped_at_two_thirds(workload: str) -> None:
    all_agree, two_agree = value("skipped at tau = 1", workload), value("skipped at tau = 2/3", workload)
    assert 0 < 1 - two_agree < all_agree < two_agree
    assert value("no two experts agree", workload) == pytest.approx(1 - two_agree)


def test_the_mean_over_all_calls_follows_from_the_means_by_agreement() -> None:
    tokens = [value(f"mean tokens of a question's calls, {split}") for split in ("3:0", "2:1", "1:1:1")]
    assert tokens == sorted(tokens)
    assert pytest.approx((960 * tokens[0] + 817 * tokens[1] + 323 * tokens[2]) / 2100) == TOKENS_PER_CALL
    assert pytest.approx(1646, abs=0.5) == TOKENS_PER_CALL
