"""What a training goes on from: its own checkpoints, those of the run that it forks, or nothing.

The configuration of a run is the base of its resume: what layers and key=value set on top may only
differ in keys that decide no result (`MAY_CHANGE`). A fork begins a new run from the weights of
another one, and may change everything that leaves the parameters as they are. Needs no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.changes import Change, changeable, find_changes
from cdp_torchrec.config.errors import check
from cdp_torchrec.config.keys import key_tree
from cdp_torchrec.config.layers import Layers, read_layers
from cdp_torchrec.config.shipped import QUICKSTART
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.own_starter import check_starters
from cdp_torchrec.distributed.process_group import world_size
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.saved import CONFIG, is_restarted, named_directory
from cdp_torchrec.stored_run import StoredRun, newest_checkpoint, parent_run


def load_training(arguments: Sequence[str]) -> ExperimentConfig:
    """The configuration of a training, on top of that of the run that it goes on from.

    Args:
        arguments: layers and key=value. Without a layer, a run that goes on from none is the
            quickstart.

    Raises:
        ConfigError: a mistake, a starter of another dataset, or a change that makes the run
            another one.
        CheckpointError: there is no run to fork from, or another release wrote the run.
    """
    asked = _asked(arguments)
    run = _run_section(asked)
    directory = named_directory(run)
    if run.resume and directory is None:
        raise ConfigError("run.resume = true: which run? Name it with run.dir=DIR")
    if directory is not None and (run.resume or is_restarted(directory)):
        newest = newest_checkpoint(directory)
        if base := _own_file(directory, newest):
            unset = _out_of_place(asked, newest)
            config = load_config(ExperimentConfig, arguments, base=base, unset=unset)
            check_starters(arguments, config.data.dir)
            check_unchanged(config, directory)
            return config
    if run.fork_from is not None:
        parent = parent_run(run.fork_from)
        config = load_config(
            ExperimentConfig,
            arguments,
            base=parent.checkpoint / CONFIG,
            unset=["run", *_out_of_place(asked, parent)],
        )
    else:
        config = load_config(ExperimentConfig, arguments, default_layers=[QUICKSTART])
    check_starters(arguments, config.data.dir)
    return config


def check_unchanged(config: ExperimentConfig, run_dir: Path) -> None:
    """Whether a run is still the run that its checkpoints are of.

    They decide, not config.toml beside them, which anybody may have edited.

    Raises:
        ConfigError: a key differs that makes it another run; names all of them, and the way out;
            the dataset is said to have moved to where there is none.
        CheckpointError: another release wrote the checkpoints.
    """
    newest = newest_checkpoint(run_dir)
    if newest is not None and (problems := _refused(newest.config, config)):
        raise ConfigError.of(
            [
                f"run.resume: {run_dir} was begun with other settings, and would be another run:",
                *problems,
                f"A run that goes on may change {', '.join(changeable(ExperimentConfig))}. With "
                "other settings begin a new run from its weights: "
                f"run.fork_from={run_dir} run.dir=NEW",
            ]
        )
    if newest is None or config.data.dir.exists() or config.data.dir == newest.config.data.dir:
        return  # where it has not moved, a simulated log is made anew, and is the same
    raise ConfigError(
        f"data.dir = {config.data.dir}: there is nothing; a run that goes on needs the dataset "
        f"that it was begun with, which was {newest.config.data.dir}"
    )


def flattered(
    parent: ExperimentConfig, config: ExperimentConfig, requests: Mapping[str, int]
) -> Iterator[str]:
    """What is wrong with the measurements of a fork, in words.

    Args:
        parent: of the run that it is forked from.
        config: of the fork.
        requests: of each period of the dataset, in the order of time.
    """
    seen = _trained_on(parent, requests)
    now, before = config.data, parent.data
    held_out = _held_out(now, requests)
    if any(seen[period] > requests[period] - held_out[period] for period in now.train_on):
        yield (
            f"WARNING: data.validation_fraction = {now.validation_fraction} of "
            f"data.train_on = {list(now.train_on)}: the run that this one is forked from held out "
            f"{before.validation_fraction} of {list(before.train_on)} only, so it was trained on a "
            "part of what is validated here, and looks better than it is"
        )
    yield from measured_on_training(
        parent, config, requests, who="the run that this is forked from"
    )


def measured_on_training(
    trained: ExperimentConfig, config: ExperimentConfig, requests: Mapping[str, int], *, who: str
) -> Iterator[str]:
    """That a run is measured on requests that it was trained on, in words.

    Args:
        trained: as which it was trained.
        config: as which it is measured.
        requests: of each period of the dataset, in the order of time.
        who: what the run is called.
    """
    if _trained_on(trained, requests)[config.data.test_on]:
        yield (
            f"WARNING: data.test_on = '{config.data.test_on}': {who} was trained up to "
            f"'{trained.data.train_on[-1]}', so it has seen what is measured here, and looks "
            "better than it is"
        )


def _trained_on(config: ExperimentConfig, requests: Mapping[str, int]) -> Mapping[str, int]:
    """How many requests of each period, the first ones, a run was trained on, or those before it.

    What a run was forked from is taken to have gone through all periods before its own, as
    `train_days` does.
    """
    data, seen = config.data, dict.fromkeys(requests, 0)
    if not requests.keys() >= {*data.train_on}:
        return seen  # days of another copy of the dataset, of which this one knows nothing
    if config.run.fork_from is not None:
        periods = list(requests)
        earlier = periods[: periods.index(data.train_on[0])]
        seen |= {period: requests[period] for period in earlier}
    held_out = _held_out(data, requests)
    return seen | {period: requests[period] - held_out[period] for period in data.train_on}


def _held_out(data: DataConfig, requests: Mapping[str, int]) -> Mapping[str, int]:
    """How many requests of each training period, the last ones, are held out for validation."""
    left = int(data.validation_fraction * sum(requests[period] for period in data.train_on))
    found = {}
    for period in reversed(data.train_on):
        found[period] = min(left, requests[period])
        left -= found[period]
    return found


def _refused(own: ExperimentConfig, config: ExperimentConfig) -> list[str]:
    changes = find_changes(own, config)
    return [
        *(change.describe() for change in changes if not change.may_change),
        *_moved_ends(own, changes),
    ]


def _moved_ends(own: ExperimentConfig, changes: Sequence[Change]) -> list[str]:
    """Another end of the training, where learning rates fall towards it."""
    schedules = {"sparse": own.optimizer.sparse.schedule, "dense": own.optimizer.dense.schedule}
    falling = [
        f"optimizer.{name}.schedule.kind = '{schedule.kind}'"
        for name, schedule in schedules.items()
        if schedule.kind != "constant" and schedule.decay_steps is None
    ]
    return [
        f"{change.describe()}, and its learning rates end there ({falling[0]} without decay_steps)"
        for change in changes
        if falling and change.key in ("trainer.max_steps", "trainer.max_epochs")
    ]


def _asked(arguments: Sequence[str]) -> Mapping[str, Any]:
    """What the arguments say by themselves."""
    layers, unreadable = read_layers(arguments, key_tree(ExperimentConfig), defaults={})
    if unreadable:
        raise ConfigError.of(unreadable)
    return layers.data


def _run_section(asked: Mapping[str, Any]) -> RunConfig:
    """The section `run`; its defaults where it has a mistake, which is then found with others."""
    layers = Layers(key_tree(RunConfig))
    section = asked.get("run", {})
    layers.add(section if isinstance(section, Mapping) else {}, "")
    return check(RunConfig, layers)[0] or RunConfig()


def _own_file(directory: Path, newest: StoredRun[ExperimentConfig] | None) -> Path | None:
    """Where a run's configuration stands: in its directory, or in what it has saved."""
    places = [directory, *([newest.checkpoint] if newest else [])]
    return next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)


def _out_of_place(asked: Mapping[str, Any], run: StoredRun[ExperimentConfig] | None) -> list[str]:
    """Keys of the sharding that do not fit the ranks, or what is asked, and decide nothing else."""
    if run is not None and run.record.world_size != world_size():
        return ["sharding.plan", "sharding.hardware", "sharding.sharding_group_size"]
    sharding = asked.get("sharding", {})
    chosen = (
        isinstance(sharding, Mapping)
        and {"strategy", "tables", "sharding_group_size"} & sharding.keys()
    )
    return ["sharding.plan"] if chosen else []
