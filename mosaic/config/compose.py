"""Composes configurations as plain dictionaries."""

import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mosaic.bundled import BUNDLE
from mosaic.core.safe_text import file_name

CONF = BUNDLE / "conf"
MOST_KEPT = 256
"""Choices of groups whose compositions a process keeps."""
FILE_KEYS = ("path", "aggregator_path", "profiles", "profile", "calls", "output_tokens", "calibration")
"""Keys that may name a file."""


OmegaConf.register_new_resolver("file_name", file_name, replace=True)  # conf/config.yaml names sweeps' folders by it


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of a point outside a command."""
    return plain(_shared_composer().compose(overrides))


@cache
def _shared_composer() -> "Composer":
    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", [], return_hydra_config=True)
        return Composer(GlobalHydra.instance().config_loader(), master)


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Read the user's settings."""
    return OverridesParser.create().parse_overrides([*overrides])


def default_choices(choices: Mapping[str, str]) -> dict[str, str]:
    """Read the choices of groups that conf/config.yaml makes itself, beside those that were made."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    named = {group: str(name) for entry in entries if isinstance(entry, dict) for group, name in entry.items()}
    return {group: str(choices[name[2:-1]]) if name.startswith("${") else name for group, name in named.items()}


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolve a configuration into plain dictionaries and lists, without the parts that do not belong to a run."""
    with open_dict(config):
        for part in ("hydra", "study"):  # how a preset is run, and what its study shows
            config.pop(part, None)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return resolved


def as_recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as a run's folder records it.

    The SHA-256 of every file that it names, or of the records of a run's folder, is added: a changed file is another
    configuration. The folder of stored measurements is left out, since results do not depend on it.
    """
    recorded: dict[str, Any] = {}
    for key, value in config.items():
        if key == "store":
            continue
        recorded[key] = as_recorded(value) if isinstance(value, Mapping) else value
        if key in FILE_KEYS and isinstance(value, str) and (files := _named_files(Path(value))):
            recorded[f"{key}_sha256"] = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return recorded


def _named_files(path: Path) -> list[Path]:
    """List the file that a value names, or the records of a complete run where it names its folder."""
    if path.is_file():
        return [path]
    records = [path / name for name in ("summary.json", "sessions.parquet", "calls.parquet")]
    return records if all(file.is_file() for file in records) else []


class Composer:
    """Composes points of one command line: each choice of groups once, then a copy with its values for each point.

    Hydra would read all files for each point. Hydra alone composes a point that requests more than groups and values of
    keys (``+key=1``, ``~key``). It also composes a point that cannot be composed: the error is Hydra's.

    Parameters
    ----------
    loader
        Hydra's.
    master
        The command line's settings of Hydra itself, composed.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader = loader
        self._master = master
        self._groups = set(loader.list_groups(""))
        # Pickled: to read that costs an eighth of a deep copy.
        self._composed = lru_cache(MOST_KEPT)(lambda *chosen: pickle.dumps(self._by_hydra(chosen)))

    def compose(self, point: Sequence[str]) -> DictConfig:
        """Compose a point.

        Raises
        ------
        HydraException
            If it cannot be composed.
        """
        overrides = parsed(point)
        values = [override for override in overrides if not self._is_of_group(override)]
        if all(map(_sets_a_value, values)):
            chosen = [_line(override) for override in overrides if self._is_of_group(override)]
            with suppress(HydraException, OmegaConfBaseException):
                config: DictConfig = pickle.loads(self._composed(*chosen))
                for override in values:
                    OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
                config.hydra.overrides.task = [_line(override) for override in overrides]
                naming = config.hydra.job.config.override_dirname
                config.hydra.job.override_dirname = get_overrides_dirname(overrides=overrides, **naming)
                return config
        return self._by_hydra(point)

    def _by_hydra(self, point: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._master, [*point])

    def _is_of_group(self, override: Override) -> bool:
        return "/" in override.key_or_group or override.key_or_group in self._groups


def _sets_a_value(override: Override) -> bool:
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    return not (adds or override.package or override.is_hydra_override() or override.is_sweep_override())


def _line(override: Override) -> str:
    assert override.input_line is not None, "it was parsed"
    return override.input_line
