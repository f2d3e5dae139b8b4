"""Measure a trained model, or a dataset's untrained scorers, on the test split.

    torchx run dist.ddp -j 1x4 launch/evaluate.py RUN_OR_CHECKPOINT [--predictions] [key=value ...]
    cdp_torchrec evaluate RUN_OR_CHECKPOINT --split train --predictions
    cdp_torchrec evaluate DATASET [--ladder]

A run is measured at its best checkpoint, beside the untrained scorers of its dataset, and what is
wrong with it is said in words. evaluation.json is written into the run. Any other measurement,
of another checkpoint, dataset or setting, goes to a directory of its own under RUN/evaluations, or
to --output. --predictions also writes predictions.parquet: request_id, user_id and item_id as the
log has them, label and probability. --split train measures the training split instead, with the
held-out requests, in its order: its predictions are what another run learns from as a student
(data.soft_labels.file). For a dataset directory the untrained scorers are measured:
popularity, category, place, last touched item and, for synthetic data, the true probabilities and
the ideal observer, who knows the world and sees the behaviours before each request. --ladder shows
instead what each piece of knowledge of a synthetic world is worth.
"""

from argparse import Namespace
from pathlib import Path

from cdp_torchrec.command_line import CommandParser
from cdp_torchrec.config import ConfigError
from cdp_torchrec.continuation import measured_on_training
from cdp_torchrec.data.days import requests_of_periods
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.experiment_config import ExperimentConfig, check_early
from cdp_torchrec.run.saved import EVALUATION, holds_run, is_dataset
from cdp_torchrec.stored_run import evaluate_run, evaluation_directory, open_run, parent_run
from cdp_torchrec.whole_file import why_unwritable


def main(arguments: list[str]) -> None:
    """Measure what the first argument names."""
    parser = CommandParser("evaluate", __doc__, "key=value over the run's configuration")
    parser.add_argument("path", type=Path, help="run directory, checkpoint or dataset directory")
    parser.add_argument(
        "--predictions", action="store_true", help="write predictions.parquet beside the result"
    )
    parser.add_argument("--split", choices=("train", "test"), default="test", help="what is scored")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory for the result")
    parser.add_argument(
        "--ladder", action="store_true", help="oracle features of a synthetic dataset"
    )
    options = parser.parse(arguments, ExperimentConfig, sections=[])
    if options is None:
        return

    measure = _of_dataset if is_dataset(options.path) else _of_run
    table = measure(options)
    if is_rank_zero():
        print(table)


def _of_dataset(options: Namespace) -> str:
    """What the untrained scorers get right, or what each piece of knowledge is worth."""
    unused = options.settings + ["--predictions"] * options.predictions
    unused += ["--output"] * (options.output is not None)
    unused += ["--split train"] * (options.split == "train")
    if unused:
        raise ConfigError.of(
            [
                f"{unused[0]}: has no effect on {options.path}, a dataset, whose untrained "
                "scorers have no settings and no predictions and are measured on its test split; "
                "name a run or a checkpoint"
            ]
        )

    from cdp_torchrec.ideal_scorer import oracle_ladder
    from cdp_torchrec.reference_scorers import evaluate_references

    init_process_group()
    return oracle_ladder(options.path) if options.ladder else evaluate_references(options.path)


def _of_run(options: Namespace) -> str:
    """What a trained model gets right, and in words what is wrong with it."""
    if options.ladder:
        raise ConfigError(f"--ladder: {options.path} is no dataset directory")
    run = open_run(options.path, options.settings, ExperimentConfig)
    check_early(run.config)
    warnings = []
    if options.split == "train":
        warnings.append(
            "Of the training split: where a run has seen it, no measure of its worth.\n"
        )
    elif run.changes and run.config.data.dir.is_dir():
        requests = requests_of_periods(run.config.data.dir)
        own = parent_run(run.checkpoint).config
        warnings += measured_on_training(own, run.config, requests, who="this run")
    place = evaluation_directory(run, options.split)
    output = options.output or place
    if output.resolve() == place.resolve():
        output = place  # by its own name, the run's directory keeps its config.toml
    elif holds_run(output):
        raise ConfigError(
            f"--output {output}: holds a run, whose own evaluation this one is not; name "
            "another directory, or none"
        )
    if reason := why_unwritable(output):
        raise ConfigError(f"{output}: {reason}; choose another directory with --output DIR")

    from cdp_torchrec.outcome import describe_outcome

    device = init_process_group(run.config.ranks)
    trained = evaluate_run(
        run, device, split=options.split, output=output, write_predictions=options.predictions
    )
    lines = [*warnings, f"{trained.report.table()}\n"]
    if options.split == "test":
        lines.append(describe_outcome(trained))
    if output != run.directory:
        lines.append(f"{output / EVALUATION} has this result")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
