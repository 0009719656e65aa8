"""Describes errors of Hydra and OmegaConf in mosaic's words."""

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
RENAMED_CHOICES = {
    "hardware/h100_94gb": "flexicache_h100",
    "experiment/budget_lessons": "budget_calibration",
}
"""Choices of a group that had another name in the version before."""


def explain_hydra_error(error: BaseException) -> str | None:
    """Describe an error with field, rule and value; None: it is no error of Hydra's that omits them."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if new_name := RENAMED_CHOICES.get(error.missing_cfg_file):
            return f"{group}={name} is now called {group}={new_name}"
        return f"{group} must be one of {sorted(error.options)}, got {name!r}"
    if isinstance(error, OverrideParseException):
        return f"override must be KEY=VALUE in Hydra's grammar, got {error.override!r} ({str(error).splitlines()[0]})"
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given, as in {error.full_key}=VALUE"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    return None


def _explain_composition(error: ConfigCompositionException) -> str:
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return str(error)
    parent = cause.parent_node
    keys = [key for key in parent if not str(key).startswith("_")] if isinstance(parent, DictConfig) else None
    if keys is None or cause.full_key is None:
        return f"{str(error).splitlines()[0]} ({str(cause).splitlines()[0]})"
    return f"{cause.full_key} must be a key of the configuration, one of {keys} there; +{cause.full_key}=VALUE adds one"
