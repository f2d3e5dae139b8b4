"""What a training reached, in words: beside scorers that learnt nothing, and what is wrong."""

import math
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cdp_torchrec.coverage import Coverage, measure_coverage
from cdp_torchrec.data.schema import STARTER
from cdp_torchrec.experiment import Trained
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.progress import WIDTH
from cdp_torchrec.reference_scorers import TRUTH, reference_reports
from cdp_torchrec.text_table import aligned_table
from cdp_torchrec.undefined import shown

FEW_STEPS = 100
"""Trainings with fewer steps have hardly begun."""
CALIBRATED = (0.8, 1.25)
"""Predicted clicks per click that need no words."""
_RANKING = ("auc", "uauc", "gauc")
_PROBABILITIES = (("log loss", "log_loss"), ("NE", "ne"), ("calibration", "calibration"))


def describe_outcome(trained: Trained) -> str:
    """The last lines of a training or an evaluation; collective.

    Args:
        trained: the finished run.

    Returns:
        Test metrics beside the untrained scorers and, where known, the true probabilities; in
        words, whether the run beats them and what is wrong with it; commands for what comes next.

    Raises:
        DatasetError: the dataset is damaged.
    """
    config, data = trained.experiment.config, trained.experiment.data
    references = reference_reports(config.data, num_bootstrap=0)
    coverage = measure_coverage(data)
    problems = [
        *weak_metrics(trained.report, references),
        *blind_spots(coverage, config),
        *idle_settings(
            config,
            has_validation=data.validation is not None,
            total_steps=trained.experiment.total_steps,
        ),
    ]
    if problems and trained.progress.step < FEW_STEPS:
        problems.append(_few_steps(trained, data.schema.splits["train"].impressions))
    lines = [_comparison(trained.report, references), ""]
    lines += success(trained.report, references)
    if problems:
        lines += ["SOMETHING IS WRONG:", *map(_item, problems), *_starter_hint(config)]
    return "\n".join([*lines, "", *_next_steps(trained.run_dir, config.data.dir)])


def success(report: MetricReport, references: Mapping[str, MetricReport]) -> Iterator[str]:
    """One sentence if no untrained scorer is as good in any metric.

    Args:
        report: of the model.
        references: of the untrained scorers, by name.
    """
    if math.isnan(report.auc):
        return  # nothing was ranked
    if any(getattr(report, m) <= max(0.5, _best(references, m)[1]) for m in _RANKING):
        return
    metric = "auc" if math.isnan(report.gauc) else "gauc"
    name, bar = _best(references, metric)
    value, low = getattr(report, metric), getattr(report, f"{metric}_interval").low
    if low <= bar:
        yield (
            f"{metric.upper()} {value:.4f} is above every untrained scorer, but not shown to be: "
            f"the best of them, {name}, has {bar:.4f}, within its interval."
        )
    else:
        yield (
            f"{metric.upper()} {value:.4f} beats every untrained scorer; the best of them, {name}, "
            f"has {bar:.4f}."
        )


def weak_metrics(report: MetricReport, references: Mapping[str, MetricReport]) -> Iterator[str]:
    """What the test metrics of a model say against it.

    Args:
        report: of the model.
        references: of the untrained scorers, by name.
    """
    if report.ne >= 1:
        yield (
            f"NE {report.ne:.3f} is not below 1: the probabilities are worse than the click rate "
            f"{report.ctr:.4f} for every impression."
        )
    if report.num_clicks and not CALIBRATED[0] <= report.calibration <= CALIBRATED[1]:
        yield (
            f"calibration {report.calibration:.2f}: the model predicts {report.calibration:.2f} "
            "clicks for every click that happened. Often training learnt rare ids by heart: fewer "
            "passes (trainer.max_epochs), a larger data.vocabulary.<entity>.min_count."
        )
    for name in _RANKING:
        value = getattr(report, name)
        if value <= 0.5:
            yield f"{name.upper()} {value:.4f} is not above 0.5, which any random order reaches."
    if math.isnan(report.auc):
        yield (
            f"{report.num_clicks:,} of the {report.num_impressions:,} test impressions are clicks: "
            "there is no pair to rank, and the order of the model was not measured. Name a period "
            "with both (data.test_on)."
        )
    elif math.isnan(report.gauc):
        yield (
            "GAUC is undefined: no test request has candidates with and without a click. Use AUC "
            "and UAUC, and for the choice of the checkpoint trainer.validation_metric=auc."
        )
    for metric in _RANKING:
        name, bar = _best(references, metric)
        value = getattr(report, metric)
        if value <= bar:
            yield (
                f"{metric.upper()} {value:.4f} is no better than {bar:.4f} of the untrained scorer "
                f"{name}."
            )


def blind_spots(coverage: Coverage, config: ExperimentConfig) -> Iterator[str]:
    """What never matches in the test split.

    Args:
        coverage: of the test split.
        config: of the run.
    """
    lookup = config.model.interest.history
    module = f"model.interest.kind = {config.model.interest.kind}"
    has_counts = config.model.interaction.history_counts
    counts = ["model.interaction.history_counts"] if has_counts else []
    through_gate = [module] if lookup.gated or lookup.pool_segments is not None else []
    past_gate = [module] if lookup.recent and not through_gate else []
    if not coverage.with_history and (readers := [*through_gate, *past_gate, *counts]):
        yield (
            "no test request has a single behaviour before it, so there is nothing to read for "
            f"{' and '.join(readers)}: compare user_id and timestamp (milliseconds) of the "
            "requests with those of the behaviours."
        )
    elif coverage.has_gate and not coverage.with_gated_history:
        effects = []
        if readers := [*through_gate, *counts]:
            effects.append(f"there is nothing to read for {' and '.join(readers)}")
        if past_gate:
            effects.append(f"{module} meets no category twice")
        if effects:
            yield (
                f"the category gate never passes a behaviour, so {' and '.join(effects)}: the "
                "categories of the behaviours are written otherwise than those of the candidates."
            )
    for feature, share in coverage.own_rows.items():
        if not share and feature not in config.model.interaction.exclude:
            yield (
                f"no {feature} of the test split has an embedding row of its own: its ids never "
                "occur in training, or too rarely (data.vocabulary.<entity>.min_count). Leave it "
                f'out of the tower (model.interaction.exclude=["{feature}"]) or altogether '
                f'(data.exclude_features=["{feature}"]).'
            )


def idle_settings(
    config: ExperimentConfig, *, has_validation: bool, total_steps: int
) -> Iterator[str]:
    """Settings that had no effect, or not the one that their names promise.

    Args:
        config: of the run.
        has_validation: whether requests were held out for validation.
        total_steps: of the training, if nothing ends it early.
    """
    fraction = config.data.validation_fraction
    if fraction and not has_validation:
        yield f"data.validation_fraction = {fraction} had no effect: it is less than one request."
    trainer = config.trainer
    keys = ["patience", "validation_metric"]
    if trainer.checkpoint_every_steps is not None:  # else it is the rhythm of checkpoints, too
        keys.append("validate_every_steps")
    for key in [] if has_validation else keys:
        if (value := getattr(trainer, key)) != type(trainer).model_fields[key].default:
            yield (
                f"trainer.{key} = {value} had no effect: "
                f"data.validation_fraction = {fraction} holds out no request."
            )
    if trainer.max_steps is not None and trainer.max_steps > total_steps:
        yield (
            f"trainer.max_steps = {trainer.max_steps} had no effect: trainer.max_epochs = "
            f"{trainer.max_epochs} ends the training at step {total_steps}."
        )
    for key in ("count_segments", "count_ages"):
        if getattr(config.data.history, key) and not config.model.interaction.history_counts:
            yield (f"data.history.{key} had no effect: model.interaction.history_counts = false.")
    if config.sharding.plan is not None:
        for key in config.sharding.unread_beside_plan():
            yield f"sharding.{key} had no effect: sharding.plan is taken as it is."
    for name in ("sparse", "dense"):
        schedule = getattr(config.optimizer, name).schedule
        if schedule.warmup_steps >= total_steps:
            yield (
                f"optimizer.{name}.schedule.warmup_steps = {schedule.warmup_steps} is not below "
                f"the {total_steps} steps of the training: the learning rate rose to the last one, "
                "and what follows a warm-up had no effect."
            )
    yield from _idle_history_settings(config)


def _idle_history_settings(config: ExperimentConfig) -> Iterator[str]:
    """Those of what is read of the history."""
    history, interest = config.data.history, config.model.interest
    if history.dayparts > 1 and not interest.reads_time_of_day:
        yield (
            f"data.history.dayparts = {history.dayparts} had no effect: model.interest.kind = "
            f"{interest.kind} reads no behaviour by its time."
        )
    longest = interest.history.longest_sequence(history.max_length)
    for key, number in interest.searches.items():
        if longest is not None and number >= longest:
            yield (
                f"model.interest.{key} = {number} had no effect: no search happens among "
                f"{longest} behaviours (data.history.max_length)."
            )


def _starter_hint(config: ExperimentConfig) -> Iterator[str]:
    """Where settings that fit the log are, unless the run was trained with them."""
    layer = config.data.dir / STARTER
    settings = _trainer_settings(layer)
    if settings is None:
        yield (
            "* A layer with settings that fit the log, and why: "
            f"cdp_torchrec prepare_data starter {_quoted(config.data.dir)}"
        )
    elif any(getattr(config.trainer, key, None) != value for key, value in settings.items()):
        yield f"* Settings that fit the log, and why, are in {layer}."


def _trainer_settings(layer: Path) -> Mapping[str, Any] | None:
    """What a file that people edit says of the trainer; None: it is gone or spoilt."""
    try:
        section = tomllib.loads(layer.read_text()).get("trainer", {})
    except (OSError, ValueError, RecursionError):
        return None
    return section if isinstance(section, Mapping) else None


def _few_steps(trained: Trained, impressions: int) -> str:
    size = trained.experiment.config.trainer.global_batch_size
    return (
        f"the training took {trained.progress.step} steps only (trainer.global_batch_size = "
        f"{size:,}, {impressions:,} training impressions): take smaller batches, more passes "
        "(trainer.max_epochs) or higher learning rates."
    )


def _best(references: Mapping[str, MetricReport], metric: str) -> tuple[str, float]:
    """The untrained scorer with the largest metric, popularity if it is undefined for all."""
    values = {n: getattr(r, metric) for n, r in references.items() if n != TRUTH}
    best = max(values, key=lambda name: -1.0 if math.isnan(values[name]) else values[name])
    return best, values[best]


def _comparison(report: MetricReport, references: Mapping[str, MetricReport]) -> str:
    """Scores of untrained scorers are no probabilities, so only their order is measured."""
    rows = [["test split", *(name.upper() for name in _RANKING), *(n for n, _ in _PROBABILITIES)]]
    for name, found in {"this run": report, **references}.items():
        is_probability = name in ("this run", TRUTH)
        rows.append(
            [
                {TRUTH: "true probabilities"}.get(name, name),
                *(shown(getattr(found, metric)) for metric in _RANKING),
                *(
                    shown(getattr(found, metric)) if is_probability else "-"
                    for _, metric in _PROBABILITIES
                ),
            ]
        )
    return aligned_table(rows)


def _item(text: str) -> str:
    """Of a list, in lines as wide as a bar."""
    return textwrap.fill(
        text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False
    )


def _next_steps(run_dir: Path, dataset: Path) -> list[str]:
    run, store = _quoted(run_dir), _quoted(dataset)
    return [
        "Where to look next:",
        f"  tensorboard --logdir {_quoted(run_dir / 'tensorboard')}",
        f"  cdp_torchrec evaluate {run} --predictions     # every prediction, in the log's ids",
        f"  cdp_torchrec export {run}                     # the artifact that serves it",
        f"  cdp_torchrec serve {_quoted(run_dir / 'export')} history_store={store}",
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
