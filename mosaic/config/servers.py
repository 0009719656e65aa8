"""Finds models on servers by ``--server``: their addresses and prices.

Before the batch each server's list is read: the names of its models, and their contexts if it is vLLM.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from mosaic.config.errors import log
from mosaic.config.instantiation import TARGET
from mosaic.core.checks import require
from mosaic.core.spending import Prices, TokenPrice
from mosaic.core.workload import Family
from mosaic.engines.endpoint_models import ListedModel, list_models
from mosaic.engines.named_models import DEFAULT_TEMPERATURE, MAX_OUTPUT_TOKENS

EXPERT = "mosaic.core.Expert"
DEFAULT_KEY = "OPENAI_API_KEY"
"""Sent to https servers where it is set and no other key is named."""
MOST_UNNAMED = 10
"""If a server lists more models, not all are called: each costs money."""


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
        if (one := find_listed(name, listed[base])) is not None
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


def split_prices(texts: Sequence[str]) -> tuple[dict[str | None, TokenPrice], list[str]]:
    """Separate prices of tokens, which have a slash, from those of machines.

    Raises
    ------
    ValueError
        If a price of tokens is not valid.

    Examples
    --------
    >>> split_prices(["a100_80gb=1.89"])
    ({}, ['a100_80gb=1.89'])
    """
    of_tokens = dict(map(read_price, (text for text in texts if "/" in text)))
    return of_tokens, [text for text in texts if "/" not in text]


def read_hourly_price(of_hours: Sequence[str]) -> float | None:
    """Read the dollars for a worker and an hour; None: no price is given.

    Raises
    ------
    ValueError
        If there are several, or one is no price.

    Examples
    --------
    >>> read_hourly_price(["1.89"])
    1.89
    """
    rule = "dollars for a worker and an hour, or [MODEL=]IN/OUT for a million tokens of a model on servers"
    require(len(of_hours) < 2, "--price", rule, ", ".join(of_hours))
    try:
        per_hour = float(of_hours[0]) if of_hours else None
    except ValueError:
        per_hour = -1.0
    require(per_hour is None or 0 <= per_hour < float("inf"), "--price", rule, of_hours)
    return per_hour


def prices_of(endpoints: Sequence[Mapping[str, Any]]) -> Prices:
    """Return the prices of ``backend.endpoints``, by server."""
    return {server: TokenPrice(**one["price"]) for server, one in enumerate(endpoints) if one.get("price") is not None}


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


def find_listed(name: str, listed: Sequence[ListedModel] | None) -> ListedModel | None:
    """Find a model in a list; a server without a list is assumed to have it."""
    if listed is None:
        return ListedModel(name)
    return next((one for one in listed if one.name == name), None)


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
