"""Whether a starter.toml that a configuration is made of is that of the dataset it lies in."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.schema import SCHEMA, STARTER


def check_starters(arguments: Sequence[str], data_dir: Path) -> None:
    """A dataset that was copied or moved has a starter that still names the place before.

    A `data.dir` among the arguments is what is meant, whatever layers say.

    Args:
        arguments: layers and key=value, as they were read.
        data_dir: the dataset that they lead to.

    Raises:
        ConfigError: it is another dataset than that in which such a layer lies.
    """
    if any(argument.startswith("data.dir=") for argument in arguments):
        return
    for layer in map(Path, arguments):
        beside = layer.parent
        if layer.name != STARTER or not (layer.is_file() and (beside / SCHEMA).is_file()):
            continue
        named = tomllib.loads(layer.read_text()).get("data", {}).get("dir")
        is_read = named is not None and Path(named) == data_dir
        if is_read and not (data_dir.exists() and data_dir.samefile(beside)):
            raise ConfigError.of(
                [
                    f"data.dir: {layer} names {named}, but lies in a dataset that was copied or "
                    f"moved: add data.dir={beside} (or data.dir={named}), or make the file anew: "
                    f"cdp_torchrec prepare_data starter {beside}"
                ]
            )
