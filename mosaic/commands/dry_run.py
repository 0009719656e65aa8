"""Print what a batch would send, to which experts, and what that costs: nothing is loaded, sent or written."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mosaic.config.batch import BatchRequest, batch_config, work_folder
from mosaic.config.job import build_job
from mosaic.config.run_start import log_notes
from mosaic.config.servers import prices_of
from mosaic.core.addition import add_in_order
from mosaic.core.chat import Chat, count_text_tokens
from mosaic.core.spending import TokenPrice, dollars_text
from mosaic.core.workload import Call, ExpertName
from mosaic.engines.prompt_text import messages_of
from mosaic.pipelines.node import Node, When
from mosaic.report.run_folder import JOURNAL
from mosaic.report.summary_text import rows
from mosaic.runtime.job import Job


def run_dry(request: BatchRequest) -> int:
    """Print what a batch would send; returns the exit status."""
    config = batch_config(request)
    job = build_job(config, work_folder(request.path) / JOURNAL, request.overrides).job
    log_notes(job.workload)
    print(describe(request.path.name, job, dearest_prices(config["backend"].get("endpoints", ()))))
    return 0


def describe(name: str, job: Job, prices: Mapping[ExpertName, TokenPrice] | None) -> str:
    """Write what a batch would send, in a few lines and the messages of its first call.

    Parameters
    ----------
    name
        Of its file.
    job
        The batch.
    prices
        Of experts on servers; None: they are loaded on machines, whose time costs.
    """
    calls, questions = job.graph.first_calls(job.workload), job.workload.questions
    by_id = {question.id: question for question in questions}
    by_question: dict[str, Call] = {}
    for call in calls:
        by_question.setdefault(call.key.question, call)
    prompts = {key: job.graph.prompt(by_id[key], call, {}) for key, call in by_question.items()}
    tokens_by_question = {key: tokens_of(prompt) for key, prompt in prompts.items()}
    num_calls = Counter(call.expert for call in calls)
    limits = {expert.name: expert.max_output_tokens for expert in job.experts}
    prompt_tokens, most_tokens = Counter[ExpertName](), Counter[ExpertName]()
    for call in calls:
        sampling = by_id[call.key.question].sampling
        prompt_tokens[call.expert] += tokens_by_question[call.key.question]
        most_tokens[call.expert] += (sampling and sampling.max_output_tokens) or limits[call.expert]
    first, first_prompt = next(iter(prompts.items()))
    lines = rows(
        ("experts", ", ".join(f"{expert} {count:,} calls" for expert, count in num_calls.items())),
        *(("merged by", merged_by(node, len(questions))) for node in job.graph.upper_nodes),
        ("prompts", f"about {prompt_tokens.total():,} tokens that experts read (4 characters a token)"),
        ("cost", cost_of_experts(job, prompt_tokens, most_tokens, prices)),
    )
    return "\n".join(
        [
            f"{name}: {len(questions):,} questions, {len(calls):,} calls; nothing was sent or written",
            *lines,
            f"question {first}, as {by_question[first].expert} would get it:",
            json.dumps(messages_of(first_prompt), ensure_ascii=False, indent=2),
        ]
    )


def tokens_of(prompt: str | Chat) -> int:
    """Estimate the tokens of a prompt."""
    return sum(count_text_tokens(message["content"]) for message in messages_of(prompt))


def merged_by(node: Node, num_questions: int) -> str:
    """Describe the aggregator, and its largest number of calls."""
    names = ", ".join(expert.name for expert in node.experts)
    rule = ", where the answers do not agree" if node.when is When.UNSETTLED else ""
    return f"{names}, at most {num_questions * len(node.experts):,} calls{rule}"


def dearest_prices(endpoints: Sequence[Mapping[str, Any]]) -> dict[ExpertName, TokenPrice] | None:
    """Read the prices of experts on servers, the highest of several servers; None: there are no servers."""
    prices: dict[ExpertName, TokenPrice] = {}
    for server, price in prices_of(endpoints).items():
        expert = str(endpoints[server]["expert"])
        prices[expert] = max(prices.get(expert, price), price, key=lambda one: one.dollars(1, 1))
    return prices if endpoints else None


def cost_of_experts(
    job: Job,
    prompt_tokens: Mapping[ExpertName, int],
    most_tokens: Mapping[ExpertName, int],
    prices: Mapping[ExpertName, TokenPrice] | None,
) -> str:
    """Describe the known costs of calls before they are sent."""
    if prices is None:
        return "that of the machines' time: mosaic quote measures it"
    unknown = [expert for expert in prompt_tokens if expert not in prices]
    if unknown:
        return f"not known, as {', '.join(unknown)} has no price: --price gives one"
    read = add_in_order(prices[expert].dollars(tokens, 0) for expert, tokens in prompt_tokens.items())
    most = add_in_order(prices[expert].dollars(0, tokens) for expert, tokens in most_tokens.items())
    merges = "; merging is not counted" if job.graph.upper_nodes else ""
    writes = f"at most {dollars_text(most)} for what experts write{merges} (mosaic quote estimates both)"
    return f"{dollars_text(read)} to read prompts, {writes}"
