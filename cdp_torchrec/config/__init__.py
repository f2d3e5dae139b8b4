"""Strict layered configuration: sections, layers, keys, errors and help."""

from cdp_torchrec.config.keys import MAY_CHANGE, not_with, only_if
from cdp_torchrec.config.load import (
    Config,
    ConfigConflicts,
    ConfigError,
    dump_toml,
    load_config,
    load_toml,
)
from cdp_torchrec.config.several import OneOrSeveral, several

__all__ = [
    "MAY_CHANGE",
    "Config",
    "ConfigConflicts",
    "ConfigError",
    "OneOrSeveral",
    "dump_toml",
    "load_config",
    "load_toml",
    "not_with",
    "only_if",
    "several",
]
