"""Reads LiteLLM files: names of models, and with ``api_base`` their servers, limits and prices."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mosaic.config.errors import log
from mosaic.config.servers import Deployment, alike, base_url_of, find_listed
from mosaic.core.checks import require
from mosaic.core.spending import MILLION, TokenPrice
from mosaic.engines.endpoint_models import ListedModel, list_models

REFERENCE = "os.environ/"
"""How a LiteLLM file names an environment variable."""
LITELLM_KEYS = (
    "model", "api_base", "api_key", "rpm", "tpm", "input_cost_per_token", "output_cost_per_token", "max_tokens",
    "max_completion_tokens", "temperature",
)  # fmt: skip
"""What is read of an entry's litellm_params."""


class LiteLlmEntry(NamedTuple):
    """An entry of a LiteLLM file."""

    name: str
    parameters: Mapping[str, Any]
    """litellm_params."""
    info: Mapping[str, Any]
    """model_info."""


def is_litellm(models: str | None) -> bool:
    """Return whether ``--models`` names a LiteLLM file."""
    return models is not None and models.endswith((".yaml", ".yml"))


def litellm_entries(path: Path) -> list[LiteLlmEntry]:
    """Read a LiteLLM file.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["model_list"]
        found = [
            LiteLlmEntry(str(entry["model_name"]), dict(entry["litellm_params"]), dict(entry.get("model_info") or {}))
            for entry in entries
        ]
        models = [str(entry.parameters["model"]) for entry in found]
    except OSError as error:
        raise ValueError(f"--models must be a readable file, got {str(path)!r} ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"--models must be a LiteLLM file, a model_list of model_name and litellm_params.model, got {str(path)!r}"
        ) from error
    require(len(models) > 0, f"{path}: model_list", "at least one entry", [])
    for entry in found:
        rule = "text of one line, without control characters"
        require(entry.name.isprintable(), f"{path}: model_name", rule, entry.name)
    return found


def deployments_of_litellm(entries: Sequence[LiteLlmEntry], path: str) -> list[Deployment]:
    """Read the entries of a LiteLLM file whose models are on servers.

    Raises
    ------
    ValueError, BackendError
        Naming the entry, the rule and the value, or a server that does not answer.
    """
    found = [_deployment(name, parameters, info, path) for name, parameters, info in entries]
    known = cache(lambda base, key: list_models(base, key))
    return alike([_as_listed(one, known(one.base_url, one.api_key_env), path) for one in found])


def _as_listed(one: Deployment, listed: Sequence[ListedModel] | None, path: str) -> Deployment:
    """Add a server's data about a model."""
    found = find_listed(one.model, listed)
    if found is None:
        rule = f"one that {one.base_url} serves, {[each.name for each in listed or ()]}"
        raise ValueError(f"{path}, {one.expert}: model must be {rule}, got {one.model!r}")
    context = one.context_tokens if found.context_tokens is None else found.context_tokens
    return replace(one, is_vllm=one.is_vllm or found.is_vllm, context_tokens=context)


def _deployment(name: str, parameters: Mapping[str, Any], info: Mapping[str, Any], path: str) -> Deployment:
    where = f"{path}, {name}"
    base, provider = _base_of(parameters.get("api_base"), where), str(parameters["model"]).partition("/")[0]
    unread = [key for key in parameters if key not in LITELLM_KEYS]
    if unread:
        log(f"{where}: ignored {', '.join(map(str, unread))}")
    limits = [key for key in ("max_tokens", "max_completion_tokens") if parameters.get(key) is not None]
    require(
        len(limits) < 2, f"{where}: max_tokens", "left out beside max_completion_tokens", parameters.get("max_tokens")
    )
    return Deployment(
        expert=name,
        base_url=base,
        model=without_provider(str(parameters["model"])),
        api_key_env=_key_name(parameters.get("api_key"), where),
        is_vllm=provider in ("hosted_vllm", "vllm"),
        max_requests_per_min=parameters.get("rpm"),
        max_tokens_per_min=parameters.get("tpm"),
        price=_price_of({**info, **parameters}, where),
        max_output_tokens=parameters[limits[0]] if limits else None,
        limit_key=limits[0] if limits else "max_tokens",
        temperature=parameters.get("temperature"),
    )


def _base_of(value: object, where: str) -> str:
    """Read api_base, which may name an environment variable."""
    rule = "given in every entry of the file, or in none: models of one batch are all on servers, or all loaded here"
    require(isinstance(value, str) and bool(value), f"{where}: api_base", rule, value)
    url = str(value)
    if url.startswith(REFERENCE):
        name = url.removeprefix(REFERENCE)
        url = os.environ.get(name, "")
        require(bool(url), f"{where}: api_base", f"the URL in environment variable {name}, which is not set", value)
    return base_url_of(url)


def _price_of(values: Mapping[str, Any], where: str) -> TokenPrice | None:
    """Read LiteLLM's costs of a token; None: there are none."""
    costs = [values.get(key) for key in ("input_cost_per_token", "output_cost_per_token")]
    if costs == [None, None]:
        return None
    dollars = []
    for kind, cost in zip(("input", "output"), costs, strict=True):
        try:
            amount = float(cost if cost is not None else "none")  # YAML takes 1e-7 for a text
        except (TypeError, ValueError):
            amount = -1.0
        rule = "dollars for a token, for both of input and output"
        require(0 <= amount < float("inf"), f"{where}: {kind}_cost_per_token", rule, cost)
        dollars.append(round(amount * MILLION, 9))
    return TokenPrice(input_dollars_per_mtok=dollars[0], output_dollars_per_mtok=dollars[1])


def _key_name(value: object, where: str) -> str | None:
    if value is None:
        return None
    name = str(value).removeprefix(REFERENCE)
    if not str(value).startswith(REFERENCE) or not name.isidentifier():
        # The value is not repeated: a key that was written there must not appear in a log too.
        raise ValueError(
            f"{where}: api_key must be os.environ/NAME, and the key in the environment variable NAME: files and "
            "journals are shared"
        )
    return name


def without_provider(model: str) -> str:
    """Drop LiteLLM's name of a provider from that of a model.

    Examples
    --------
    >>> without_provider("hosted_vllm/meta-llama/Llama-3.1-8B"), without_provider("meta-llama/Llama-3.1-8B")
    ('meta-llama/Llama-3.1-8B', 'meta-llama/Llama-3.1-8B')
    """
    provider, _, name = model.partition("/")
    return name if provider in ("hosted_vllm", "vllm", "huggingface", "openai") and name else model
