"""OpenAI-compatible servers that are already running: where each is, what it serves, and how patient to be with it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.errors import FatalEngineError
from mosaic.core.workload import ExpertName


class Api(StrEnum):
    """Which of a server's two ways in a text takes; token ids always go to completions."""

    CHAT = "chat"
    """The server wraps the text in the chat template of its checkpoint."""
    COMPLETIONS = "completions"
    """The text is wrapped here, in the plain template that the executor has for checkpoints without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The server that a worker is; its one expert is loaded."""

    base_url: str
    """As OpenAI's clients take it: ``http://localhost:8000/v1``."""
    expert: ExpertName
    model: str
    """What the server calls the expert."""
    api: Api = Api.CHAT
    is_vllm: bool = True
    """Ask for token ids, and switch off the sampling defaults that vLLM takes from a checkpoint's generation_config.

    Both are fields that OpenAI's own servers refuse.
    """
    opens_thinking: bool = False
    """The chat template opens the think tag, so responses start inside thinking; a server does not say so."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key; None: it wants none."""
    max_requests_per_min: int | None = None
    """Most requests that it gets in any minute, retries included; None: no limit."""
    max_tokens_per_min: int | None = None
    """Most tokens that it reads and writes in any minute; None: no limit."""

    def __post_init__(self) -> None:
        label = f"endpoint of {self.expert!r}"
        for name in ("expert", "model"):
            require_name(getattr(self, name), f"endpoint.{name}")
        require_name(self.base_url, f"{label}: base_url")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        _require_url(self.base_url, f"{label}: base_url")
        if not isinstance(self.api, Api):
            allowed = [api.value for api in Api]
            require(self.api in allowed, f"{label}: api", f"one of {allowed}", self.api)
            object.__setattr__(self, "api", Api(self.api))
        if self.api_key_env is not None:
            rule = "the name of an environment variable, and not a key itself"
            # The value is not repeated: who wrote a key there should not find it in a log too.
            require(str(self.api_key_env).isidentifier(), f"{label}: api_key_env", rule, "...")
        for name in ("max_requests_per_min", "max_tokens_per_min"):
            if getattr(self, name) is not None:
                require_count(getattr(self, name), f"{label}: {name}", at_least=1)

    def api_key(self) -> str | None:
        """Read the server's key.

        Raises
        ------
        FatalEngineError
            If the variable that should hold it does not.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key or not key.isascii() or not key.isprintable():
            raise FatalEngineError(
                f"{self.expert} at {self.base_url}: environment variable {self.api_key_env} must hold its API key, "
                + ("it holds more than one line of ASCII" if key else "it is not set")
            )
        return key

    @property
    def asked_as(self) -> tuple[str | bool, ...]:
        """What decides a response beside the call itself; where the server is does not."""
        return (self.model, str(self.api), self.is_vllm, self.opens_thinking)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPatience:
    """How long a server may take, and how often what failed is tried again.

    Tried again are requests that get 408 or 5xx, a broken connection or no reply in time; others fail at once. After
    429, and wherever a server names a time (Retry-After), nothing is sent before, and no retry is counted.
    """

    connect_timeout_s: float = 10.0
    reply_timeout_s: float = 900.0
    """A whole reply may take so long: the server's queue, the generation, and the transfer to its last byte."""
    max_retries: int = 4
    """Of each call."""
    first_wait_s: float = 0.5
    """Before the first retry; it doubles with each."""
    max_wait_s: float = 30.0
    """The longest pause where the server names no time. One that wants more time gives its calls to others."""
    outage_timeout_s: float = 1800.0
    """A server that has served calls, and serves no more, is waited for so long."""

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "reply_timeout_s", "first_wait_s", "max_wait_s", "outage_timeout_s"):
            require_number(getattr(self, name), f"patience.{name}", above=0)
        require_count(self.max_retries, "patience.max_retries")

    def wait_s(self, num_retries: int) -> float:
        """How long to wait after so many retries.

        Examples
        --------
        >>> patience = EndpointPatience(first_wait_s=0.5, max_wait_s=3)
        >>> [patience.wait_s(number) for number in range(4)]
        [0.5, 1.0, 2.0, 3]
        """
        return min(self.max_wait_s, self.first_wait_s * 2.0**num_retries)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """How the engine of a worker serves calls, where the worker is a server."""

    endpoint: Endpoint
    patience: EndpointPatience = EndpointPatience()
    max_in_flight: int = 64
    """Most requests that the server has in its hands."""

    def __post_init__(self) -> None:
        require_count(self.max_in_flight, "endpoint.max_in_flight", at_least=1)

    @property
    def max_num_seqs(self) -> int:
        """The same under the name that engines have for it."""
        return self.max_in_flight


def endpoint_by_expert(endpoints: Sequence[Endpoint], experts: Iterable[ExpertName]) -> dict[ExpertName, Endpoint]:
    """Give each expert one of its servers: which of them answers must not decide the response.

    Raises
    ------
    ValueError
        If a server's expert is none of these, or two servers of an expert are asked in different ways.
    """
    known = sorted(experts)
    found: dict[ExpertName, Endpoint] = {}
    for endpoint in endpoints:
        require(endpoint.expert in known, "endpoint.expert", f"one of {known}", endpoint.expert)
        first = found.setdefault(endpoint.expert, endpoint)
        rule = f"asked alike, as {first.asked_as}"
        require(first.asked_as == endpoint.asked_as, f"endpoints of {endpoint.expert!r}", rule, endpoint.asked_as)
    return found


def _require_url(url: str, field: str) -> None:
    rule = "a URL such as http://localhost:8000/v1, without a user, a key or a query"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    plain = known and "@" not in parts.netloc and not parts.query and not parts.fragment
    require(plain and url.isascii() and url.isprintable() and " " not in url, field, rule, url.rpartition("@")[2])
