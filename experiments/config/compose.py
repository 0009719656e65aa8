"""Configurations as plain dictionaries."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
FILE_KEYS = ("path", "aggregator_path", "profiles", "profile", "calls", "output_tokens", "calibration")
"""Keys that may name a file."""


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of a point outside of a Hydra application."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("config", overrides))


def plain(config: Any) -> dict[str, Any]:
    """Resolve a Hydra configuration into plain dictionaries and lists."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    resolved.pop("hydra", None)
    return resolved


def with_input_digests(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the SHA-256 of every file that a configuration names, so that a changed file is another configuration."""
    stamped: dict[str, Any] = {}
    for key, value in config.items():
        stamped[key] = with_input_digests(value) if isinstance(value, Mapping) else value
        if key in FILE_KEYS and isinstance(value, str) and Path(value).is_file():
            stamped[f"{key}_sha256"] = sha256(Path(value).read_bytes()).hexdigest()
    return stamped
