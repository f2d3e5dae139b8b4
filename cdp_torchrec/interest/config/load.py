"""Settings of a module from layers, for models of one's own."""

from cdp_torchrec.config import Config, load_config
from cdp_torchrec.interest.config import InterestConfig


class _Model(Config):
    interest: InterestConfig


class _Layers(Config):
    model: _Model


def load_interest(*arguments: str) -> InterestConfig:
    """What layers and `model.interest.key=value` say together.

    Args:
        arguments: such as "configs/interest/cdp.toml", found from anywhere if it comes with the
            package.

    Raises:
        ConfigError: they are wrong, or set something beside `model.interest`.
    """
    return load_config(_Layers, arguments).model.interest
