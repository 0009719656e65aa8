"""Lists the models of servers: their names, context lengths, and whether vLLM serves them."""

import asyncio
from typing import Any, NamedTuple

from mosaic.core.errors import BackendError, FatalEngineError
from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_client import Client
from mosaic.engines.endpoint_faults import RequestError

NO_LIST = (404, 405, 501)
"""Statuses of servers that do not list their models."""
_PATIENCE = EndpointPatience(max_retries=1)
"""The user is waiting for the list."""


class ListedModel(NamedTuple):
    """An entry of a server's list of models."""

    name: str
    context_tokens: int | None = None
    """vLLM reports it; None: the server does not."""
    is_vllm: bool = False


def read_models(listed: Any) -> list[ListedModel]:
    """Read the reply to a request for the list of models; empty if it is not such a list.

    Examples
    --------
    >>> read_models({"data": [{"id": "a", "owned_by": "vllm", "max_model_len": 4096}]})
    [ListedModel(name='a', context_tokens=4096, is_vllm=True)]
    """
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            context = entry.get("max_model_len")
            is_known = type(context) is int and context > 1
            is_vllm = entry.get("owned_by") == "vllm" or is_known
            models.append(ListedModel(entry["id"], context if is_known else None, is_vllm))
    return models


def list_models(base_url: str, api_key_env: str | None = None) -> list[ListedModel] | None:
    """Request the list of a server's models; None: it has no list.

    Raises
    ------
    BackendError
        If it does not answer, or needs another key.
    ValueError
        If the URL is not valid.
    """
    endpoint = Endpoint(base_url=base_url, expert="the list of models", model="-", api_key_env=api_key_env)
    key = endpoint.api_key()
    try:
        return read_models(asyncio.run(_ask(endpoint, key)))
    except RequestError as error:
        if error.status in NO_LIST:
            return None
        if error.status in (401, 403):
            named = f"in {api_key_env}" if api_key_env else "(none is sent: --key-env names the variable that holds it)"
            raise FatalEngineError(f"{error}; check the key {named}") from None
        raise BackendError(str(error)) from None


async def _ask(endpoint: Endpoint, key: str | None) -> Any:
    client = Client(endpoint, _PATIENCE, key, has_served=False)
    try:
        return await client.list_models()
    finally:
        await client.close()
