"""Configurations as plain dictionaries."""

import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mosaic.bundled import BUNDLE
from mosaic.core.safe_text import file_name

CONF = BUNDLE / "conf"
MOST_KEPT, MOST_SENT = 256, 16
"""Choices of groups whose compositions a process keeps, and that a sweep sends to its launcher's workers."""
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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", [], return_hydra_config=True)
        return SharingLoader(GlobalHydra.instance().config_loader(), MOST_KEPT), master


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Read what a user sets."""
    return OverridesParser.create().parse_overrides([*overrides])


def default_choices(choices: Mapping[str, str]) -> dict[str, str]:
    """Read which choices of groups conf/config.yaml makes by itself, beside the choices that were made."""
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

    The SHA-256 of every file that it names, or of the records of a run's folder, is added, so that a changed file is
    another configuration; where measurements are kept is left out, as it decides nothing.
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


class SharingLoader(ConfigLoaderImpl):
    """Composes each choice of groups once, and a point by setting its values in a copy: Hydra reads all files for each.

    What it has composed goes along where it is pickled, so that workers need not compose what the sweep has checked.
    A point that asks for more than groups and values of keys (``+key=1``, ``~key``) is composed by Hydra's own loader,
    and so is one that cannot be composed: its message is Hydra's.
    """

    def __init__(self, loader: ConfigLoader, most_kept: int = MOST_SENT) -> None:
        super().__init__(loader.get_search_path())
        self._most_kept = most_kept
        self._groups = set(self.list_groups(""))
        for source in self.get_sources():
            if source.scheme() == "file":
                vars(source)["load_config"] = KeptFiles(source)
        self._composed: dict[tuple[str, ...], bytes] = {}
        """Pickled: to read that costs an eighth of a deep copy."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = OverridesParser.create(self).parse_overrides([*sweep_overrides])
        values = [override for override in overrides if not self._is_of_group(override)]
        if all(map(_sets_a_value, values)):
            chosen = [_line(override) for override in overrides if self._is_of_group(override)]
            with suppress(HydraException, OmegaConfBaseException):
                config = self._compose(master_config, chosen)
                for override in values:
                    OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
                config.hydra.overrides.task = [_line(override) for override in overrides]
                naming = config.hydra.job.config.override_dirname
                config.hydra.job.override_dirname = get_overrides_dirname(overrides=overrides, **naming)
                return config
        return super().load_sweep_config(master_config, sweep_overrides)

    def _is_of_group(self, override: Override) -> bool:
        return "/" in override.key_or_group or override.key_or_group in self._groups

    def _compose(self, master_config: DictConfig, chosen: list[str]) -> DictConfig:
        key = (*master_config.hydra.overrides.hydra, *chosen)
        if key in self._composed:
            kept: DictConfig = pickle.loads(self._composed[key])
            return kept
        composed = super().load_sweep_config(master_config, chosen)
        with suppress(pickle.PicklingError):  # in a launcher's worker a plugin's class may not be the one of its module
            self._composed[key] = pickle.dumps(composed)
            if len(self._composed) > self._most_kept:
                del self._composed[next(iter(self._composed))]
        return composed


class KeptFiles:
    """Reads each file of a source once: choices of groups have most files in common."""

    def __init__(self, source: ConfigSource) -> None:
        self._source = source
        self._kept: dict[str, tuple[ConfigResult, bytes]] = {}

    def __call__(self, config_path: str) -> ConfigResult:
        if config_path not in self._kept:
            result = type(self._source).load_config(self._source, config_path)
            self._kept[config_path] = result, pickle.dumps(result.config)
        result, config = self._kept[config_path]
        return replace(result, config=pickle.loads(config), header={**result.header})

    def __getstate__(self) -> dict[str, object]:
        return {"_source": self._source, "_kept": {}}

    def __deepcopy__(self, _: object) -> "KeptFiles":
        return self  # Hydra copies its sources for each composition


def _sets_a_value(override: Override) -> bool:
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    return not (adds or override.package or override.is_hydra_override() or override.is_sweep_override())


def _line(override: Override) -> str:
    assert override.input_line is not None, "it was parsed"
    return override.input_line
