"""Train the one-step student of a CDP run, and compare it with its teacher.

    cdp_torchrec distill RUN
    cdp_torchrec distill RUN distill.teacher_steps=20 distill.dir=runs/student
    torchx run dist.ddp -j 1x2 launch/distill.py RUN

The student is a run directory of its own (RUN-student), CDP with one denoiser call, which
`evaluate` and `export` take like any other. Everything but the denoiser is the teacher's.
key=value changes the run's configuration, distill.key=value the distillation.
"""

from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.layers import is_override
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.distill.config import DistillExperimentConfig
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.stored_run import open_run


def main(arguments: list[str]) -> None:
    """Distill one run."""
    if asks_help(arguments):
        print(help_text(__doc__, DistillExperimentConfig, arguments, sections=["distill"]))
        return
    if not arguments or is_override(arguments[0]):
        raise ConfigError("expected: cdp_torchrec distill RUN [key=value ...], RUN a run directory")

    for argument in arguments[1:]:
        if argument.startswith("run."):
            raise ConfigError(
                f"{argument}: the student is a run of its own, which begins anew; its directory is "
                "distill.dir"
            )
    run = open_run(Path(arguments[0]), arguments[1:], DistillExperimentConfig)
    check_early(run.config)

    from cdp_torchrec.distill.run import distill_run

    distilled = distill_run(run, init_process_group(run.config.ranks))
    if is_rank_zero():
        print(distilled.table())


if __name__ == "__main__":
    run_main(main)
