"""Finds models on servers, from ``--server`` or a LiteLLM file with ``api_base``: their addresses and prices.

Before the batch each server's list is read: the names of its models, and their contexts if it is vLLM.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mosaic.config.errors import log
from mosaic.config.instantiation import TARGET
from mosaic.core.checks import require
from mosaic.core.spending import MILLION, TokenPrice
from mosaic.core.workload import Family
from mosaic.engines.endpoint_models import ListedModel, list_models
from mosaic.engines.named_models import DEFAULT_TEMPERATURE, MAX_OUTPUT_TOKENS

EXPERT = "mosaic.core.Expert"
DEFAULT_KEY = "OPENAI_API_KEY"
"""Sent to https servers where it is set and no other key is named."""
MOST_UNNAMED = 10
"""If a server lists more models, not all are called: each costs money."""
REFERENCE = "os.environ/"
"""How a LiteLLM file names an environment variable."""
LITELLM_KEYS = (
    "model", "api_base", "api_key", "rpm", "tpm", "input_cost_per_token", "output_cost_per_token", "max_tokens",
    "max_completion_tokens", "temperature",
)  # fmt: skip
"""What is read of an entry's litellm_params."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """An expert at one server."""

    expert: str
    base_url: str
    model: str
    """What the server calls it."""
    api_key_env: str | None = None
    is_vllm: bool = False
    context_tokens: int | None = None
    max_requests_per_min: int | None = None
    max_tokens_per_min: int | None = None
    price: TokenPrice | None = None
    max_output_tokens: int | None = None
    limit_key: str = "max_tokens"
    """See ``Endpoint``."""
    temperature: float | None = None

    def as_endpoint(self) -> dict[str, Any]:
        """Give it as ``backend.endpoints`` has it."""
        names = ("expert", "base_url", "model", "api_key_env", "is_vllm", "max_requests_per_min", "max_tokens_per_min")
        price = None if self.price is None else asdict(self.price)
        limit = {} if self.limit_key == "max_tokens" else {"limit_key": self.limit_key}
        return {name: getattr(self, name) for name in names} | {"price": price} | limit


def deployments_of_servers(
    urls: Sequence[str], models: str | None, key_env: str | None, aggregator: str | None
) -> list[Deployment]:
    """Find models at servers by their names, or take all that the servers list.

    Parameters
    ----------
    urls
        Of servers, several of them split by commas too.
    models
        Names, split by commas; None: all.
    key_env
        Variable that holds the key of all; None: OPENAI_API_KEY for https servers, if it is set.
    aggregator
        One more name, unless it is None or ``none``.

    Raises
    ------
    ValueError, BackendError
        If a server does not answer, or has none of the models.
    """
    bases = list(dict.fromkeys(base_url_of(url) for part in urls for url in part.split(",") if url.strip()))
    keys = {base: key_env or _default_key(base) for base in bases}
    listed = {base: list_models(base, keys[base]) for base in bases}
    names = _named(models, aggregator) or _all_of(listed)
    found = [
        Deployment(
            expert=name, base_url=base, model=name, api_key_env=keys[base], is_vllm=one.is_vllm,
            context_tokens=one.context_tokens,
        )
        for name in names
        for base in bases
        if (one := _find(name, listed[base])) is not None
    ]  # fmt: skip
    served = {one.expert for one in found}
    missing = [name for name in names if name not in served]
    if missing:
        known = list(dict.fromkeys(one.name for models in listed.values() for one in models or ()))
        require(False, "--models", f"names that {', '.join(bases)} serves, {known}", ",".join(missing))
    return alike(found)


def base_url_of(url: str) -> str:
    """Give the base of a server's API: OpenAI's path, where none is given.

    Examples
    --------
    >>> base_url_of("http://localhost:8000"), base_url_of("https://host/openai/v1/")
    ('http://localhost:8000/v1', 'https://host/openai/v1')
    """
    plain = url.strip().rstrip("/")
    return plain if urlsplit(plain).path or "://" not in plain else f"{plain}/v1"


def _default_key(base_url: str) -> str | None:
    return DEFAULT_KEY if base_url.startswith("https://") and os.environ.get(DEFAULT_KEY) else None


def read_price(text: str) -> tuple[str | None, TokenPrice]:
    """Read a price as the command line has it: dollars for a million tokens read and written, of a model or of all.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> read_price("gpt=0.15/0.6")
    ('gpt', TokenPrice(input_dollars_per_mtok=0.15, output_dollars_per_mtok=0.6))
    >>> read_price("1/2")[0] is None
    True
    """
    model, _, amounts = text.rpartition("=")
    read, slash, written = amounts.partition("/")
    try:
        dollars = float(read), float(written)
    except ValueError:
        dollars = -1.0, -1.0
    rule = "MODEL=IN/OUT or IN/OUT, dollars for a million tokens read and written, as gpt=0.15/0.6"
    require(bool(slash) and all(0 <= amount < float("inf") for amount in dollars), "--price", rule, text)
    return model or None, TokenPrice(input_dollars_per_mtok=dollars[0], output_dollars_per_mtok=dollars[1])


def split_prices(texts: Sequence[str]) -> tuple[dict[str | None, TokenPrice], float | None]:
    """Split prices of tokens from one of a worker and an hour, dollars.

    Raises
    ------
    ValueError
        If one is neither.

    Examples
    --------
    >>> split_prices(["1.89"])
    ({}, 1.89)
    """
    of_tokens = dict(map(read_price, (text for text in texts if "/" in text)))
    of_hours = [text for text in texts if "/" not in text]
    rule = "dollars for a worker and an hour, or [MODEL=]IN/OUT for a million tokens of a model on servers"
    require(len(of_hours) < 2, "--price", rule, ", ".join(of_hours))
    try:
        per_hour = float(of_hours[0]) if of_hours else None
    except ValueError:
        per_hour = -1.0
    require(per_hour is None or 0 <= per_hour < float("inf"), "--price", rule, of_hours)
    return of_tokens, per_hour


def names_of(models: str | None) -> list[str]:
    """Split names by commas."""
    return [name.strip() for name in (models or "").split(",") if name.strip()]


def _named(models: str | None, aggregator: str | None) -> list[str]:
    names = names_of(models)
    more = [aggregator] if names and aggregator is not None and aggregator != "none" else []
    return list(dict.fromkeys([*names, *more]))


def _all_of(listed: Mapping[str, Sequence[ListedModel] | None]) -> list[str]:
    """Take all models that servers list, and report which."""
    for base, models in listed.items():
        require(bool(models), "--models", f"given: {base} lists no models", None)
    names = list(dict.fromkeys(one.name for models in listed.values() for one in models or ()))
    rule = f"given where servers list more than {MOST_UNNAMED} models, {names}"
    require(len(names) <= MOST_UNNAMED, "--models", rule, None)
    log(f"models: {', '.join(names)} (all that {', '.join(listed)} lists; --models names some)")
    return names


def _find(name: str, listed: Sequence[ListedModel] | None) -> ListedModel | None:
    """Find a model in a list; a server without a list is assumed to have it."""
    if listed is None:
        return ListedModel(name)
    return next((one for one in listed if one.name == name), None)


class LiteLlmEntry(NamedTuple):
    """An entry of a LiteLLM file."""

    name: str
    parameters: Mapping[str, Any]
    """litellm_params."""
    info: Mapping[str, Any]
    """model_info."""


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
    found = _find(one.model, listed)
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


def alike(found: Iterable[Deployment]) -> list[Deployment]:
    """Give all servers of an expert equal requests, so that no response depends on the server.

    Raises
    ------
    ValueError
        If entries of one name differ in settings of the model.
    """
    deployments = list(found)
    own: dict[str, list[Deployment]] = {}
    for one in deployments:
        own.setdefault(one.expert, []).append(one)
    for name, servers in own.items():
        for field in ("model", "max_output_tokens", "limit_key", "temperature"):
            values = list(dict.fromkeys(getattr(one, field) for one in servers))
            require(len(values) == 1, f"{name}: {field}", "the same at all its servers", values)
    contexts = {
        name: min((one.context_tokens for one in servers if one.context_tokens is not None), default=None)
        for name, servers in own.items()
    }
    return [
        replace(
            one,
            is_vllm=all(other.is_vllm for other in own[one.expert]),
            context_tokens=contexts[one.expert],
        )
        for one in deployments
    ]


def pool_of_servers(deployments: Sequence[Deployment], aggregator: str | None) -> dict[str, Any]:
    """Make the pool of experts that only servers have: without shapes, with a context if the server reports it."""
    experts = {one.expert: _entry(one) for one in deployments}
    names = list(experts)
    if aggregator is None:
        aggregator = names[0] if len(names) > 1 else "none"
        why = f"the first of {len(names)} models" if len(names) > 1 else "there is one model"
        log(f"aggregator: {aggregator} ({why}; --aggregator names another{', or none' if len(names) > 1 else ''})")
    if aggregator != "none":
        require(aggregator in names, "--aggregator", f"none, or a name that a server has, {names}", aggregator)
    return {"name": "servers", "aggregator": None if aggregator == "none" else aggregator, "experts": experts}


def _entry(one: Deployment) -> dict[str, Any]:
    most = MAX_OUTPUT_TOKENS if one.context_tokens is None else min(MAX_OUTPUT_TOKENS, one.context_tokens // 2)
    return {
        TARGET: EXPERT,
        "name": one.expert,
        "checkpoint": one.model,
        "shape": None,
        "family": Family.INSTRUCT.value,
        "context_tokens": one.context_tokens,
        "max_output_tokens": one.max_output_tokens or most,
        "temperature": DEFAULT_TEMPERATURE if one.temperature is None else one.temperature,
    }
