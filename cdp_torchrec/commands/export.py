"""Export a trained model as an artifact that provably scores like the trainer.

    cdp_torchrec export RUN_OR_CHECKPOINT [--output DIR] [key=value ...]
    cdp_torchrec export runs/trivago-cdp export.tables=int8 model.interest.num_inference_steps=2
    cdp_torchrec export runs/daily/2025-06-02 --delta-from EARLIER [--output DIR]
    cdp_torchrec export LATER --delta-from EARLIER --output DIR

The best checkpoint of a run becomes a directory (RUN/export by default) with everything that
cdp_torchrec.serving.Predictor and `cdp_torchrec serve` need. Test impressions are scored by the
trainer's path and, from raw ids, by the artifact: if a probability differs by more than
export.tolerance, nothing is exported. key=value sets the section `export` (such as tables =
float32, float16 or int8, table_shards, max_candidates) and the run's own, such as the sampler.

With --delta-from, only what the export has and an EARLIER one has not (RUN/delta by default): rows
of tables that differ in a bit, new ids, and the dense part. The earlier one is an artifact, or a
delta that lies beside what it begins from; tables, model and features must be the same. Predictor
and server apply it to the earlier one without a restart. LATER, an artifact that is there, is
compared as it is: nothing is compiled, and the only setting is export.signing_key.
"""

import time
from pathlib import Path

from cdp_torchrec.command_line import CommandParser
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.process_group import init_process_group, run_main
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.serving.artifact import MANIFEST, Manifest, check_is_artifact
from cdp_torchrec.serving.config import DeltaConfig, ExportedConfig
from cdp_torchrec.stored_run import open_run


def main(arguments: list[str]) -> None:
    """Export what the first argument names."""
    parser = CommandParser("export", __doc__, "key=value over the run's configuration")
    parser.add_argument("run", type=Path, help="run directory, checkpoint or later artifact")
    parser.add_argument(
        "--output", type=Path, help="directory to make; RUN/export or RUN/delta by default"
    )
    parser.add_argument(
        "--delta-from", type=Path, metavar="EARLIER", help="export what EARLIER has not"
    )
    options = parser.parse(arguments, ExportedConfig, sections=["export"])
    if options is None:
        return

    start = time.monotonic()
    base: Path | None = options.delta_from
    if base is not None:
        check_is_artifact(base)
    if (options.run / MANIFEST).is_file():
        directory, manifest = _between(options.run, base, options.output, options.settings)
    else:
        directory, manifest = _of_run(options.run, base, options.output, options.settings)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(
        f"{directory}: {manifest.name}, version {manifest.version}, {size / 2**20:.1f} MiB, "
        f"{time.monotonic() - start:.0f} s"
    )


def _of_run(
    path: Path, base: Path | None, output: Path | None, settings: list[str]
) -> tuple[Path, Manifest]:
    run = open_run(path, settings, ExportedConfig)
    check_early(run.config)
    device = init_process_group(run.config.ranks)

    from cdp_torchrec.serving.delta_export import export_delta
    from cdp_torchrec.serving.export import export_run
    from cdp_torchrec.serving.parity import Parity

    if base is None:
        exported = export_run(run, device, output=output)
        print(exported.parity.table())
        return exported.directory, exported.manifest
    delta = export_delta(run, device, base, output=output)
    print(Parity.from_json(delta.manifest.parity).table())
    print(delta.table())
    return delta.directory, delta.manifest


def _between(
    artifact: Path, base: Path | None, output: Path | None, settings: list[str]
) -> tuple[Path, Manifest]:
    config = load_config(DeltaConfig, settings)
    if base is None or output is None:
        raise ConfigError(
            f"{artifact} is an artifact: a delta that leads to it needs --delta-from EARLIER and "
            "--output DIR; to export, name a run"
        )

    from cdp_torchrec.serving.delta_export import delta_between

    delta = delta_between(artifact, base, output, signing_key=config.export.signing_key)
    print(delta.table())
    return delta.directory, delta.manifest


if __name__ == "__main__":
    run_main(main)
