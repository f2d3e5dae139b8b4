"""Settings of a training that goes through a log day by day."""

from typing import Self

from pydantic import NonNegativeFloat, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.config.load import ConfigError
from cdp_torchrec.data.config import TEST, TRAIN, check_period, is_appended
from cdp_torchrec.data.days import load_days
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.config import RunConfig


class DaysConfig(Config):
    """Which days are gone through."""

    last: str | None = None
    """The last period, which is measured on only: "test", or the name of an appended day. Without
    it, the newest one of the dataset."""
    follow: bool = False
    """Wait for the day that is appended next (`cdp_torchrec prepare_data append` or `follow`),
    measure on it, train on it, and so on: until days.last is measured on, until nothing has come
    for days.idle_timeout_s, or until a signal, which ends a day in the middle as it ends a
    training. The same line goes on."""
    idle_timeout_s: NonNegativeFloat | None = None
    """Seconds without a new day after which it ends; without it, never. Needs days.follow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.last is not None:
            check_period(self.last)
        if self.idle_timeout_s is not None and not self.follow:
            raise ValueError("idle_timeout_s has no effect without follow=true")
        return self


class DailyExperimentConfig(ExperimentConfig):
    """How each day is trained, and up to which one."""

    days: DaysConfig = DaysConfig()
    """Which days are gone through."""

    @model_validator(mode="after")
    def _check_periods(self) -> Self:
        run, data = self.run, self.data
        taken = {
            "run.resume": run.resume,
            "run.fork_from": run.fork_from is not None,
            "data.train_on": data.train_on != (TRAIN,),
            "data.test_on": data.test_on != TEST,
        }
        problems = [(key, "is set for each day by itself") for key, found in taken.items() if found]
        if data.soft_labels is not None:
            problems.append(("data.soft_labels", "it is of one training split, not of days"))
        if run.dir is None:
            problems.append(("run.dir", "names the directory of the runs of all days"))
        if problems:
            raise ConfigConflicts(problems)
        return self

    def runs(self) -> list[ExperimentConfig]:
        """The run of each period: it begins from the one before, and is measured on the next.

        Raises:
            ConfigError: days.last is no period of the dataset, nor, with days.follow, one that may
                still come.
            DatasetError: the dataset is damaged.
        """
        base = load_schema(self.data.dir)
        periods = [TRAIN, TEST, *(day.name for day in load_days(self.data.dir, base))]
        last = self.days.last or periods[-1]
        if self.days.follow and is_appended(last) and last > max(periods[2:], default=""):
            last = periods[-1]  # of those that are there
        if last not in periods[1:]:
            raise ConfigError.of(
                [f"days.last = '{last}': {self.data.dir} has {', '.join(periods[1:])}"]
            )
        directory, found = self.run.dir, []
        assert directory is not None
        sections = {name: getattr(self, name) for name in ExperimentConfig.model_fields}
        parent = None
        for number in range(periods.index(last)):
            here, following = periods[number], periods[number + 1]
            # Whatever of it is there already is gone on from.
            run = RunConfig(dir=directory / here, fork_from=parent, resume=True)
            run = self.run.model_copy(update=run.model_dump(exclude_unset=True))
            data = self.data.model_copy(update={"train_on": (here,), "test_on": following})
            found.append(ExperimentConfig(**sections | {"run": run, "data": data}))
            parent = run.dir
        return found
