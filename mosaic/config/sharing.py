"""Composes what the points of a sweep have in common once: Hydra composes every point twice, from its files on."""

import pickle
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_KEPT = 16
"""Choices of groups whose configurations are kept: launchers send them to their workers with every point."""


class SharedComposition(Callback):
    """Lets the points of a sweep share what their choices of groups give (conf/config.yaml hooks it into Hydra)."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = SharingLoader(hydra.config_loader)


class SharingLoader(ConfigLoader):
    """Composes each choice of groups once, and a point by setting its values in a copy.

    What it has composed goes along where it is pickled, so that workers need not compose what the sweep has checked.
    A point that asks for more than groups and values of keys (``+key=1``, ``~key``) is composed by Hydra's own loader,
    and so is one that cannot be composed: its message is Hydra's.
    """

    def __init__(self, loader: ConfigLoader, most_kept: int = MOST_KEPT) -> None:
        self._loader, self._most_kept = loader, most_kept
        self._groups = set(loader.list_groups(""))
        for source in loader.get_sources():
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
                config.hydra.job.override_dirname = override_dirname(overrides, config.hydra.job.config)
                return config
        return self._loader.load_sweep_config(master_config, sweep_overrides)

    def _is_of_group(self, override: Override) -> bool:
        return "/" in override.key_or_group or override.key_or_group in self._groups

    def _compose(self, master_config: DictConfig, chosen: list[str]) -> DictConfig:
        key = (*master_config.hydra.overrides.hydra, *chosen)
        if key in self._composed:
            kept: DictConfig = pickle.loads(self._composed[key])
            return kept
        composed = self._loader.load_sweep_config(master_config, chosen)
        with suppress(pickle.PicklingError):  # in a launcher's worker a plugin's class may not be the one of its module
            self._composed[key] = pickle.dumps(composed)
            if len(self._composed) > self._most_kept:
                del self._composed[next(iter(self._composed))]
        return composed

    def load_configuration(self, *arguments: Any, **options: Any) -> DictConfig:
        return self._loader.load_configuration(*arguments, **options)

    def get_search_path(self) -> ConfigSearchPath:
        return self._loader.get_search_path()

    def get_sources(self) -> list[ConfigSource]:
        return self._loader.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        return self._loader.list_groups(parent_name)

    def get_group_options(self, *arguments: Any, **options: Any) -> list[str]:
        return self._loader.get_group_options(*arguments, **options)

    def compute_defaults_list(self, *arguments: Any, **options: Any) -> Any:
        return self._loader.compute_defaults_list(*arguments, **options)


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


def override_dirname(overrides: Iterable[Override], settings: Any) -> str:
    """Name a point by its overrides, as ``hydra.job.override_dirname`` does by these settings of hydra.job.config."""
    naming = settings.override_dirname
    lines = sorted(_line(override) for override in overrides if override.key_or_group not in naming.exclude_keys)
    name: str = naming.item_sep.join(lines).replace("=", naming.kv_sep)
    return name


def points_of(overrides: Sequence[Override]) -> list[list[str]]:
    """List the points of a sweep, in the order in which Hydra's basic sweeper runs them."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        swept = override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        axes[key] = [f"{key}={value}" for value in values]
    return [list(point) for point in product(*axes.values())]


def _sets_a_value(override: Override) -> bool:
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    return not (adds or override.package or override.is_hydra_override() or override.is_sweep_override())


def _line(override: Override) -> str:
    assert override.input_line is not None, "it was parsed"
    return override.input_line
