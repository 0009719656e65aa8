"""KV caches as a choice of the plan, in the configuration: the preset, and what would have no effect."""

import pytest

from experiments.config.compose import compose_config
from experiments.config.job import job_from, simulated
from tests.experiments.test_machines import built

PRESET = "+policy=kv_plans"
COST = "{1024: {accuracy_cost_frac: 0.01, low_frac: 0.0, high_frac: 0.05}}"
CHOOSING = ("scheduler=flexible", f"+pool.experts.LlamaR1.kv_variants={COST}")


def test_the_preset_is_the_papers_program_with_caches_to_choose() -> None:
    job, site = simulated([PRESET])
    by_name = {expert.name: expert for expert in job.experts}
    for name, expert in by_name.items():
        assert [variant.budget_tokens for variant in expert.kv_variants] == [2048, 1024] * name.endswith("R1")
    assert {(variant.budget_tokens, variant.accuracy_cost_frac) for variant in by_name["LlamaR1"].kv_variants} == {
        (budget, lost) for budget, lost in site.world.answers.kv_loss_frac.items()
    }, "the world does what is believed"
    assert job.scheduler.accepted_kv_loss_frac == 0.0025
    assert job.scheduler.max_experts_per_worker == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((CHOOSING[1],), "LlamaR1.kv_variants must be left out, .* takes an expert's own KV cache"),
        (CHOOSING, "LlamaR1.kv_variants must be left out, .*accepted_kv_loss_frac=0 accepts none"),
        (
            ("scheduler=flexible", "scheduler.accepted_kv_loss_frac=0.01"),
            "accepted_kv_loss_frac must be left out, .*no expert that is asked has kv_variants",
        ),
        (
            ("+world.answers.kv_loss_frac={1024: {value: 0.01, source: assumed}}",),
            "kv_loss_frac must be left out, .*no expert that is asked may have a KV budget of 1024",
        ),
        (
            (*CHOOSING, "scheduler.accepted_kv_loss_frac=0.01", "pipeline.moves=true"),
            "pipeline.moves must be false with kv_variants, which LlamaR1 have",
        ),
        (
            (*CHOOSING, "scheduler.accepted_kv_loss_frac=0.01", "+pool.experts.LlamaR1.kv={budget_pages: 8}"),
            "kv_variants must be empty where kv is given",
        ),
        (
            (*CHOOSING, "scheduler.accepted_kv_loss_frac=0.01", "backend.order=mixed"),
            "enable_prefix_caching must be false with expert LlamaR1",
        ),
        (
            (PRESET, "world.answers.kv_loss_frac.1024.value=2"),
            "world.answers.kv_loss_frac.1024 must be at most 1",
        ),
        ((PRESET, "+world.answers.kv_loss_frac.64={value: 0.1, source: assumed}"), "KV budget of 64 tokens"),
        ((PRESET, "world.answers.kv_loss_frac=0.1"), "world.answers.kv_loss_frac must be a mapping of KV budgets"),
    ],
)
def test_what_has_no_effect_or_makes_no_sense_is_refused(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        built("workload=gpqa", *asked)


def test_what_has_an_effect_is_accepted() -> None:
    assert built("workload=gpqa", *CHOOSING, "scheduler.accepted_kv_loss_frac=0.01")
    own = "pool.experts.LlamaR1.kv={budget_pages: 64}"
    assert built("workload=gpqa", own, "+world.answers.kv_loss_frac={1024: {value: 0.01, source: assumed}}")
    assert job_from(compose_config([PRESET, "workload=gpqa", "pipeline.quorum=true"]))
