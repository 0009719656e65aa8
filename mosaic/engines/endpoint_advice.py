"""What to do about a server that serves no call."""

from mosaic.engines.endpoint import Endpoint
from mosaic.engines.endpoint_faults import AskError, Fault


def what_to_do(error: AskError, endpoint: Endpoint) -> str:
    """Say what to look at first: the key, the URL, the model, the form of the request, or the server itself."""
    model, key = f"model, got {endpoint.model!r}", _key_of(endpoint)
    if error.status in (401, 403):
        return f"check {key}, which must be allowed to use {endpoint.model!r}"
    if error.fault is Fault.REFUSED and error.status is None:
        return "check base_url"
    if error.status == 402:
        return "check the account that pays for its calls"
    if error.fault is Fault.FORMAT or error.status in (400, 422):
        form = "set is_vllm: false if the server is not vLLM; else " if endpoint.is_vllm else ""
        return f"{form}check {model}, and {key}"
    if error.fault is Fault.PASSING:
        return "look into the server's log, and start again when it serves calls"
    return f"check base_url, which ends in /v1 on most servers, and {model}"


def _key_of(endpoint: Endpoint) -> str:
    if endpoint.api_key_env is None:
        return "the key (none is sent: api_key_env names the environment variable that holds it)"
    return f"the key in {endpoint.api_key_env}"
