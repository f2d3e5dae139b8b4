r"""Explore sharding plans on hardware that need not be there: memory, time, cost, and why.

    cdp_torchrec plan_sharding configs/planning/production.toml
    cdp_torchrec plan_sharding configs/data/trivago.toml configs/interest/cdp.toml \
        'planning.hardware=["h100","a10"]' 'planning.world_sizes=[4,8,16]' \
        'planning.strategies=["planner","row_wise"]' planning.impressions_per_day=300000000

Takes the layers and key=value of `cdp_torchrec train` and a section `planning`; without a layer,
plans configs/quickstart.toml. Writes plans.txt, plans.json, figures, and a plan file for each plan
into planning.output; `sharding.plan=FILE` trains with one. Needs no GPU and no process group.
"""

from cdp_torchrec.config import load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.config.shipped import QUICKSTART
from cdp_torchrec.distributed.process_group import run_main
from cdp_torchrec.planning.config import PlanningExperimentConfig


def main(arguments: list[str]) -> None:
    """Explore, write, and show the text."""
    if asks_help(arguments):
        print(help_text(__doc__, PlanningExperimentConfig, arguments))
        return
    config = load_config(PlanningExperimentConfig, arguments, default_layers=[QUICKSTART])

    from cdp_torchrec.planning.explore import explore
    from cdp_torchrec.planning.output import write_exploration

    print(write_exploration(explore(config)))
    print(f"in {config.planning.output}: plans.txt, plans.json, plan files, figures")


if __name__ == "__main__":
    run_main(main)
