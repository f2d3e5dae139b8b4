"""Export a trained model as an artifact that provably scores like the trainer.

    cdp_torchrec export RUN_OR_CHECKPOINT [--output DIR] [key=value ...]
    cdp_torchrec export runs/trivago-cdp export.tables=int8 model.interest.num_inference_steps=2

The best checkpoint of a run becomes a directory (RUN/export by default) with everything that
cdp_torchrec.serving.Predictor and `cdp_torchrec serve` need. Test impressions are scored by the
trainer's path and, from raw ids, by the artifact: if a probability differs by more than
export.tolerance, nothing is exported. key=value sets the section `export` (such as tables =
float32, float16 or int8, table_shards, max_candidates) and the run's own, such as the sampler.
"""

import time
from pathlib import Path

from cdp_torchrec.command_line import CommandParser
from cdp_torchrec.distributed.process_group import init_process_group, run_main
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.stored_run import open_run


def main(arguments: list[str]) -> None:
    """Export what the first argument names."""
    parser = CommandParser("export", __doc__, "key=value over the run's configuration")
    parser.add_argument("run", type=Path, help="run directory or checkpoint")
    parser.add_argument("--output", type=Path, help="directory to make; RUN/export by default")
    options = parser.parse(arguments, ExportedConfig, sections=["export"])
    if options is None:
        return

    start = time.monotonic()
    run = open_run(options.run, options.settings, ExportedConfig)
    check_early(run.config)

    from cdp_torchrec.serving.export import export_run

    exported = export_run(run, init_process_group(run.config.ranks), output=options.output)
    size = sum(path.stat().st_size for path in exported.directory.rglob("*") if path.is_file())
    print(exported.parity.table())
    print(
        f"{exported.directory}: {exported.manifest.name}, version {exported.manifest.version}, "
        f"{size / 2**20:.1f} MiB, {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    run_main(main)
