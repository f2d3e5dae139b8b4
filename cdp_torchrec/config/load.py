"""Strict configuration: the base class of every section, and how it is loaded.

    config = load_config(ExperimentConfig, ["configs/data/trivago.toml", "optimizer.dense.lr=1e-4"])

Layers are TOML files, merged left to right, each on top of the defaults and of the layers that it
`extends`; `key=value` come last. A wrong configuration raises one ConfigError with all mistakes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, field_validator

from cdp_torchrec.config.errors import ConfigConflicts, check
from cdp_torchrec.config.keys import default_tables, key_tree, tables_of
from cdp_torchrec.config.layers import DEFAULT, Layers, read_layers
from cdp_torchrec.user_error import UserError

__all__ = ["Config", "ConfigConflicts", "ConfigError", "dump_toml", "load_config", "load_toml"]


class ConfigError(UserError, ValueError):
    """A user's configuration is wrong; the message names every bad key."""

    @classmethod
    def of(cls, lines: Iterable[str]) -> "ConfigError":
        """The error that reports these mistakes."""
        return cls("\n  ".join(["bad config", *lines]))


class Config(BaseModel):
    """Base of all sections: frozen, unknown keys forbidden, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _no_home(cls, value: Any) -> Any:
        """Shells leave that of `run.dir=~/x` as it is, and a directory `~` is a trap."""
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and path.parts[:1] == ("~",):
                raise ValueError("the ~ of a shell means nothing here: write the whole path")
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an optional key whose default is a value: TOML has no null to unset it with."""
        for name, info in cls.model_fields.items():
            is_optional = type(None) in get_args(info.annotation)
            if is_optional and info.get_default(call_default_factory=True) is not None:
                raise TypeError(f"{cls.__name__}.{name}: an optional key defaults to None")


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    config_class: type[ConfigT],
    arguments: Sequence[str],
    *,
    base: Path | None = None,
    default_layers: Sequence[Path] = (),
    unset: Sequence[str] = (),
) -> ConfigT:
    """Read, merge and check a configuration.

    Args:
        config_class: what is configured.
        arguments: paths ending in `.toml` (layers, merged left to right) and `section.key=value`
            (a TOML value, or a bare word as a string; applied last wherever they stand).
        base: a whole configuration on top of which the arguments come, such as that of a run.
        default_layers: layers to read when the arguments name none.
        unset: dotted keys of the base to forget.

    Raises:
        ConfigError: every mistake found, each with the file or command line that it stands in.
    """
    layers, unreadable = read_layers(
        arguments,
        key_tree(config_class),
        defaults=default_tables(config_class),
        base=base,
        default_layers=default_layers,
        unset=unset,
    )
    if unreadable:
        raise ConfigError.of(unreadable)
    return _checked(config_class, layers)


def load_toml(config_class: type[ConfigT], path: Path) -> ConfigT:
    """Read one file, such as the resolved configuration of a run.

    Raises:
        ConfigError: as `load_config`.
    """
    return load_config(config_class, (), base=path)


def dump_toml(config: Config) -> str:
    """The whole configuration as one layer, which loads back to an equal configuration.

    Keys without a value (None) are left out.

    Raises:
        ValueError: it would not load back, because it holds what no layer can say.
    """
    data = tables_of(config)
    layers = Layers(key_tree(type(config)))
    layers.add(default_tables(type(config)), DEFAULT)
    layers.add(data, type(config).__name__)
    if _checked(type(config), layers) != config:
        raise ValueError(f"no layer can say this configuration: {config!r}")
    return tomli_w.dumps(data)


def _checked(config_class: type[ConfigT], layers: Layers) -> ConfigT:
    config, mistakes = check(config_class, layers)
    if config is None:
        raise ConfigError.of(mistakes)
    return config
