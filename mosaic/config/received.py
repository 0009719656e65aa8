"""Restricts run folders from elsewhere: they may not choose the code that runs here, or who receives a key."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.config.batch import MODELS
from mosaic.config.compose import CONF, parsed
from mosaic.config.instantiation import TARGET
from mosaic.config.servers import DEFAULT_KEY, base_url_of
from mosaic.core.checks import require
from mosaic.report.run_folder import flatten

_OWN = re.compile(rf"\b{TARGET}:\s*((?:mosaic|sim)\.[\w.]+)")
_HARMLESS = (None, False, "auto")
_RUN_CODE = ("aggregator.comparison", "backend.engine.trust_remote_code", "cluster.address")
"""Keys beside targets that let code run: what comes from a Ray cluster is unpickled."""


class TrustedServers(NamedTuple):
    """Servers that may receive a key, by the command line."""

    urls: tuple[str, ...] = ()
    key_envs: tuple[str, ...] = ()
    """Variables with their keys; empty: OPENAI_API_KEY."""

    def may_have(self, base_url: str, key_env: str) -> bool:
        """Return whether a key may be sent to a server."""
        return base_url in map(base_url_of, self.urls) and key_env in (self.key_envs or (DEFAULT_KEY,))


def check_received(
    config: Mapping[str, Any], overrides: Sequence[str], path: Path, trusted: TrustedServers | None = None
) -> None:
    """Check that the command line names all code, clusters and keys that a folder's configuration requests.

    Parameters
    ----------
    config
        As the folder has it.
    overrides
        Those keys again, with the same values.
    path
        Where the configuration is, for messages.
    trusted
        Who may have a key; None: no server.

    Raises
    ------
    ValueError
        Naming the key, the rule and the folder's value.
    """
    _check_servers(config, path, trusted or TrustedServers())
    named = {each.key_or_group: each.value() for each in parsed(overrides)}
    asked_for = list(_asked_for(config))
    for key, value, what in asked_for:
        rule = f"on the command line too, with the same value: a folder names no {what} by itself"
        require(key in named and named[key] == value, f"{path}: {key}", rule, value)
    for key in named:
        rule = f"left out: {path} names no code and no key there"
        require(key in {known for known, _, _ in asked_for}, key, rule, named[key])


def _check_servers(config: Mapping[str, Any], path: Path, trusted: TrustedServers) -> None:
    servers = flatten(config).get("backend.endpoints")
    endpoints = [each for each in servers if isinstance(each, Mapping)] if isinstance(servers, list) else []
    keyed = {
        (str(each.get("base_url")), str(each["api_key_env"])): None for each in endpoints if each.get("api_key_env")
    }
    refused = [pair for pair in keyed if not trusted.may_have(base_url_of(pair[0]), pair[1])]
    if refused:
        options = dict.fromkeys(option for url, name in keyed for option in (f"--server {url}", f"--key-env {name}"))
        raise ValueError(
            f"{path}: backend.endpoints sends the key in {refused[0][1]} to {refused[0][0]}, and a folder does not "
            f"decide that by itself: {' '.join(options)} on the command line allows it"
        )


@cache
def own_targets() -> frozenset[str]:
    """Return what conf/ and `mosaic batch` make: what a received configuration may make too."""
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    return frozenset([MODELS, *(name for text in texts for name in _OWN.findall(text))])


def _asked_for(config: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Go over the keys that a folder may not decide: key, value, and what it asks for."""
    for key, name in _targets(config, ""):
        if not isinstance(name, str) or name not in own_targets():
            yield key, name, "code"
    leaves = flatten(config)
    for key in _RUN_CODE:
        if (value := leaves.get(key)) not in _HARMLESS:
            yield key, value, "code"


def _targets(value: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            below = f"{key}.{name}" if key else str(name)
            if name == TARGET:
                yield below, entry
            yield from _targets(entry, below)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _targets(entry, f"{key}[{number}]")
