"""The reverse process alone: microseconds of eager, CUDA graph and one kernel, beside the roofline.

    cdp_torchrec benchmark denoiser
    cdp_torchrec benchmark denoiser benchmark.dim=32 'benchmark.candidates=[100, 16384]'

Times the chain of `cdp_timestep` for each number of candidates and of steps, in alternating rounds,
on a GPU if there is one. The floor is the larger of what the products take at the measured rate of
torch.mm, and the smallest traffic at the measured rate of a copy. On a CPU set OMP_NUM_THREADS=1.
"""

from cdp_torchrec.benchmark.denoiser.config import DenoiserBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.config import load_config

CONFIG = DenoiserBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Measure every size.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load_config(DenoiserBenchmarkConfig, arguments).benchmark
    check_output(settings.output)

    from cdp_torchrec.benchmark.denoiser.table import as_json, as_markdown, measure_chains
    from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero

    table = measure_chains(settings, init_process_group())
    if is_rank_zero():
        publish(settings.output, "denoiser", text=as_markdown(table), numbers=as_json(table))
