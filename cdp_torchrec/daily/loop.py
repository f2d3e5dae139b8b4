"""Progressive validation: each period of a log is measured on, and only then trained on.

The run of a period begins from that of the period before, with its rows and the state of its
optimizers, and is measured on the next period, of which it has seen nothing. So the measurements
are those that a production would have had, day by day.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.changes import find_changes
from cdp_torchrec.daily.awaited_day import wait_for_day
from cdp_torchrec.daily.config import DailyExperimentConfig, DaysConfig
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.run.saved import EVALUATION
from cdp_torchrec.stored_run import newest_checkpoint
from cdp_torchrec.text_table import aligned_table
from cdp_torchrec.whole_file import whole_file, write_json

_WHERE_IT_ENDS = {
    f"trainer.{key}" for key in ("max_epochs", "max_steps", "patience", "validate_every_steps")
}
_METRICS = ("auc", "uauc", "gauc", "log_loss", "ne", "calibration")
TABLE, CURVE = "days.json", "days.png"
_MOST_LABELS = 40
"""Names of periods below the figure, which is no wider than they need."""


@dataclass(frozen=True)
class MeasuredDay:
    """What the state of a period reached on the next one."""

    trained_on: str
    measured_on: str
    metrics: dict[str, Any]
    """By name; None where one is undefined."""


def train_days(config: DailyExperimentConfig, device: torch.device) -> list[MeasuredDay]:
    """Go through the periods; collective.

    What is finished is not done again: a run that was stopped goes on, and one whose directory was
    removed is done again from the state of the day before.

    Args:
        config: how each is trained, up to which one, and whether to wait for those to come.
        device: where this rank computes.

    Returns:
        All of them; days.json and days.png in run.dir have the same.

    Raises:
        ConfigError: a day was begun with other settings.
        CheckpointError: what a finished day reached, or a checkpoint, cannot be read.
        DatasetError: a day was changed after a run was measured on it.
        Interrupted: a signal came while a day was waited for.
    """
    for directory in from_rank_zero(lambda: left_out(config), purpose="look for days"):
        if is_rank_zero():
            print(
                f"warning: {directory} was measured on a day that {config.data.dir} does not have: "
                "it is left out of the table",
                flush=True,
            )
    done = 0
    while True:
        # What there is, one rank sees for all: the others might look a moment later.
        runs = from_rank_zero(config.runs, purpose="look for days")
        for run in from_rank_zero(lambda new=runs[done:]: _unfinished(new), purpose="look at runs"):
            train_experiment(run, device, way_on="the same line goes on")
        days = from_rank_zero(
            lambda runs=runs: _gather(config, runs), purpose="write the table of the days"
        )
        if config.days.follow and is_rank_zero():
            print(describe_days(days[done:]), flush=True)
        done = len(runs)
        if days[-1].measured_on == config.days.last or not config.days.follow:
            return days
        if not wait_for_day(
            config.data.dir, config.days, after=days[-1].measured_on, device=device
        ):
            return days


def left_out(config: DailyExperimentConfig) -> list[Path]:
    """Finished runs of days behind those of the dataset: it lost some, or is another one."""
    runs = config.model_copy(update={"days": DaysConfig()}).runs()
    there = {_directory(run) for run in runs}
    finished = [path.parent for path in _directory(config).glob(f"*/{EVALUATION}")]
    return sorted(directory for directory in finished if directory not in there)


def describe_days(days: Sequence[MeasuredDay]) -> str:
    """The table of the days."""
    rows = [["trained up to", "measured on", "impressions", *_METRICS]]
    for day in days:
        cells = ["-" if (v := day.metrics[name]) is None else f"{v:.4f}" for name in _METRICS]
        rows.append(
            [day.trained_on, day.measured_on, f"{day.metrics['num_impressions']:,}", *cells]
        )
    return aligned_table(rows)


def _unfinished(runs: Sequence[ExperimentConfig]) -> list[ExperimentConfig]:
    """Those that are still to be trained, or to be gone on with.

    Raises:
        ConfigError: one of them all was begun with other settings.
        CheckpointError: another release wrote its checkpoints, or a measurement is damaged.
        DatasetError: a day was changed after one of them was measured on it.
    """
    as_begun = [_as_begun(run) for run in runs]
    _check_days([run for run in as_begun if _is_finished(run)])
    return [run for run in as_begun if not _is_finished(run)]


def _as_begun(run: ExperimentConfig) -> ExperimentConfig:
    """A run that has begun needs its parent no more, which may have moved, as it may itself."""
    newest = newest_checkpoint(_directory(run))
    if newest is None:
        return run
    parent = {"fork_from": newest.config.run.fork_from}
    run = run.model_copy(update={"run": run.run.model_copy(update=parent)})
    _check_alike(run, newest.config)
    return run


def _check_alike(run: ExperimentConfig, begun: ExperimentConfig) -> None:
    """Where a training may go on to another end, the days of a table may not have several."""
    changes = find_changes(begun, run)
    if problems := [
        change.describe()
        for change in changes
        if not change.may_change or change.key in _WHERE_IT_ENDS
    ]:
        raise ConfigError.of(
            [
                f"{_directory(run)} was begun with other settings, and all days are trained alike:",
                *problems,
                "With other settings begin the days anew, in another run.dir",
            ]
        )


def _check_days(runs: Sequence[ExperimentConfig]) -> None:
    """Numbers of a day that was corrected since, and appended again, belong in no table."""
    for run in runs:
        now = DatasetReader(run.data).test_digest
        if _evaluation(run).get("test_digest", now) != now:
            raise DatasetError(
                f"{_directory(run)} was measured on '{run.data.test_on}' of {run.data.dir}, whose "
                "requests or history were changed since. Bring them back, or remove the "
                "directories of this run and of all later ones, so that they are done again"
            )


def _is_finished(run: ExperimentConfig) -> bool:
    return (_directory(run) / EVALUATION).is_file()


def _gather(config: DailyExperimentConfig, runs: Sequence[ExperimentConfig]) -> list[MeasuredDay]:
    """Measurements of `runs`; the files have those of earlier calls beyond days.last, too."""
    days = [_measured(run) for run in runs]
    to_the_newest = config.model_copy(update={"days": DaysConfig()}).runs()
    later = [_measured(run) for run in to_the_newest[len(runs) :] if _is_finished(run)]
    directory = _directory(config)
    write_json(
        directory / TABLE,
        [
            {"trained_on": day.trained_on, "measured_on": day.measured_on, **day.metrics}
            for day in [*days, *later]
        ],
    )
    with whole_file(directory / CURVE) as partial:
        draw_days([*days, *later], partial)
    return days


def _measured(run: ExperimentConfig) -> MeasuredDay:
    measured = _evaluation(run)
    metrics = {name: measured[name] for name in (*_METRICS, "num_impressions")}
    return MeasuredDay(run.data.train_on[-1], run.data.test_on, metrics)


def _evaluation(run: ExperimentConfig) -> dict[str, Any]:
    path = _directory(run) / EVALUATION
    try:
        measured = json.loads(path.read_bytes())
        if missing := {*_METRICS, "num_impressions"}.difference(measured):
            raise ValueError(f"has no {', '.join(sorted(missing))}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is damaged: {error}; remove it, and the same line measures this day again"
        ) from error
    return measured


def _directory(config: ExperimentConfig) -> Path:
    assert config.run.dir is not None
    return config.run.dir


def draw_days(days: Sequence[MeasuredDay], path: Path) -> None:
    """Write the curve of the days as PNG; of many, not each one is named.

    Args:
        days: at least one.
        path: the file.
    """
    width = 1.5 + 0.6 * min(max(len(days), 6), _MOST_LABELS)
    figure = Figure(figsize=(width, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    for panel, names in zip(panels, (("auc", "gauc"), ("ne", "calibration")), strict=True):
        for name in names:
            values = [float("nan") if (v := d.metrics[name]) is None else v for d in days]
            panel.plot(range(len(days)), values, marker="o", markersize=4, label=name)
        panel.grid(alpha=0.3)
        panel.legend()
    named = range(0, len(days), math.ceil(len(days) / _MOST_LABELS))
    panels[-1].set_xticks(named, [days[place].measured_on for place in named], rotation=60)
    panels[0].set_title("measured on a day before training on it")
    figure.savefig(path, format="png", dpi=150)
