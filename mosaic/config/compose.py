"""Configurations as plain dictionaries."""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from mosaic.config.sharing import SharingLoader

from mosaic.bundled import BUNDLE
from mosaic.core.safe_text import file_name

CONF = BUNDLE / "conf"
MOST_KEPT = 256
"""Choices of groups whose compositions a process keeps."""
FILE_KEYS = ("path", "aggregator_path", "profiles", "profile", "calls", "output_tokens", "calibration")
"""Keys that may name a file."""


OmegaConf.register_new_resolver("file_name", file_name, replace=True)  # conf/config.yaml names sweeps' folders by it


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of a point outside of a Hydra application.

    Each choice of groups is composed once per process; a point's values are set in a copy of it.
    """
    loader, master = _shared_loader()
    config = loader.load_sweep_config(master, overrides)
    with open_dict(config):
        del config["hydra"]
    return plain(config)


@cache
def _shared_loader() -> "tuple[SharingLoader, DictConfig]":
    """Make the process's loader of conf/, and the configuration that all points start from."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from mosaic.config.sharing import SharingLoader

    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", [], return_hydra_config=True)
        return SharingLoader(GlobalHydra.instance().config_loader(), MOST_KEPT), master


def default_choices(choices: Mapping[str, str]) -> dict[str, str]:
    """Read which choices of groups conf/config.yaml makes by itself, beside the choices that were made."""
    import yaml

    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    named = {group: str(name) for entry in entries if isinstance(entry, dict) for group, name in entry.items()}
    return {group: str(choices[name[2:-1]]) if name.startswith("${") else name for group, name in named.items()}


def plain(config: Any) -> dict[str, Any]:
    """Resolve a Hydra configuration into plain dictionaries and lists."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for part in ("hydra", "study"):  # how a preset is run, and what its study shows, are no part of a run
        resolved.pop(part, None)
    return resolved


def as_recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give a configuration as a run's folder records it.

    The SHA-256 of every file that it names is added, so that a changed file is another configuration; where
    measurements are kept is left out, as it decides nothing.
    """
    recorded: dict[str, Any] = {}
    for key, value in config.items():
        if key == "store":
            continue
        recorded[key] = as_recorded(value) if isinstance(value, Mapping) else value
        if key in FILE_KEYS and isinstance(value, str) and Path(value).is_file():
            recorded[f"{key}_sha256"] = sha256(Path(value).read_bytes()).hexdigest()
    return recorded
