r"""Sharding plans, measured for a short time beside the planner's estimates.

    torchx run dist.ddp -j 1x2 launch/benchmark.py plans
    torchx run dist.ddp -j 1x2 launch/benchmark.py plans configs/data/trivago.toml \
        configs/interest/pooled.toml 'benchmark.plans=["row_wise", "runs/a/plan.json"]' \
        benchmark.output=plans benchmark.output_hardware=here.toml
    torchx run dist.ddp -j 1x2 launch/train.py ... sharding.hardware=here.toml

Prints time and memory of every table beside the estimates, fits the bandwidths of the machine, and
prints the error before and after. Layers and key=value change the run, as for `train`; without a
layer it is configs/benchmark/plans.toml.
"""

from cdp_torchrec.config import load_config
from cdp_torchrec.config.shipped import SHIPPED
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.planning.measured.config import PlansConfig

CONFIG = PlansConfig

_DEFAULT = SHIPPED / "benchmark" / "plans.toml"


def run(arguments: list[str]) -> None:
    """Measure and estimate every plan.

    Raises:
        ConfigError: a setting is wrong.
    """
    config = load_config(PlansConfig, arguments, default_layers=[_DEFAULT])
    check_early(config)

    from cdp_torchrec.experiment import prepare_synthetic
    from cdp_torchrec.planning.measured.comparison import compare
    from cdp_torchrec.planning.measured.job import check_settings, make_plans, open_job
    from cdp_torchrec.planning.measured.measurement import measure_plans
    from cdp_torchrec.planning.measured.output import write_outputs
    from cdp_torchrec.planning.measured.text import as_markdown

    check_settings(config)
    device = init_process_group(config.ranks)
    prepare_synthetic(config.data)
    job = open_job(config, device)
    measured = measure_plans(job, make_plans(job))
    if is_rank_zero():
        comparison = compare(job, measured)
        write_outputs(comparison)
        print(as_markdown(comparison))
