"""Show the configuration that a launch line resolves to, each key explained.

    cdp_torchrec show_config configs/data/trivago.toml configs/interest/cdp.toml seed=1
    cdp_torchrec show_config > mine.toml             a layer to edit and to train from
    cdp_torchrec show_config --json-schema           for completion in editors

Takes the layers and key=value of `cdp_torchrec train`; without a layer, shows
configs/quickstart.toml.
"""

import json

from cdp_torchrec.config import load_config
from cdp_torchrec.config.help import commented_toml, layer_schema
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.config.shipped import QUICKSTART
from cdp_torchrec.distributed.process_group import is_rank_zero, run_main
from cdp_torchrec.experiment_config import ExperimentConfig


def main(arguments: list[str]) -> None:
    """Print the configuration, or what is known of its keys."""
    if asks_help(arguments):
        text = help_text(__doc__, ExperimentConfig, arguments)
    elif "--json-schema" in arguments:
        text = json.dumps(layer_schema(ExperimentConfig), indent=2)
    else:
        config = load_config(ExperimentConfig, arguments, default_layers=[QUICKSTART])
        text = commented_toml(config)
    if is_rank_zero():
        print(text.rstrip())


if __name__ == "__main__":
    run_main(main)
