r"""Explore sharding plans on hardware that need not be there: memory, time, cost.

    cdp_torchrec plan_sharding configs/planning/production.toml
    cdp_torchrec plan_sharding configs/data/trivago.toml configs/interest/cdp.toml \
        'planning.hardware=["h100","a10"]' 'planning.world_sizes=[4,8,16]' \
        'planning.strategies=["planner","row_wise"]' planning.impressions_per_day=300000000

    cdp_torchrec plan_sharding configs/planning/mlperf_dlrm.toml
    cdp_torchrec plan_sharding --from-torchrec my_models.ranker:make 'planning.world_sizes=[8,16]'

Takes the layers and key=value of `cdp_torchrec train` and a section `planning`; without a layer,
plans configs/quickstart.toml. Writes plans.txt, plans.json, figures, and a plan file for each plan
into planning.output; `sharding.plan=FILE` trains with one. Needs no GPU and no process group. If
none of the plans is possible, the exit code is 1.

A model of your own needs no dataset: describe it (section [described], as mlperf_dlrm.toml does),
or name a function that makes it on the meta device; --help from_torchrec explains it.
"""

from cdp_torchrec.config import load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.config.shipped import QUICKSTART
from cdp_torchrec.data.own_starter import check_starters
from cdp_torchrec.distributed.process_group import run_main
from cdp_torchrec.experiment_config import check_dataset_early
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.outside_config import OutsideConfig, planned_config, without_flag
from cdp_torchrec.user_error import UserError


def main(arguments: list[str]) -> None:
    """Explore, write, and show the text."""
    arguments = without_flag(arguments)
    config_class = planned_config(arguments)
    if asks_help(arguments):
        print(help_text(__doc__, config_class, arguments))
        return
    if config_class is OutsideConfig:
        config = load_config(OutsideConfig, arguments)
    else:
        config = load_config(PlanningExperimentConfig, arguments, default_layers=[QUICKSTART])
        check_starters(arguments, config.data.dir)
        check_dataset_early(config)

    from cdp_torchrec.planning.explore import explore
    from cdp_torchrec.planning.output import write_exploration

    exploration = explore(config)
    print(write_exploration(exploration))
    print(f"in {config.planning.output}: plans.txt, plans.json, plan files, figures", flush=True)
    if not exploration.feasible:
        raise UserError(f"none of {len(exploration.outcomes)} plans is possible; why stands above")


if __name__ == "__main__":
    run_main(main)
