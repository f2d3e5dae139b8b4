"""Claims about mistakes in a configuration: every one is told, with key, value and cure."""

from pathlib import Path
from typing import Self

import pytest
from pydantic import ValidationError, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, ConfigError, load_config
from tests.config.sample import Experiment, layer, lines, message
from tests.paths import CONFIGS


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BAD_INPUTS = {
    "unknown key": (
        "[model.interest]\nnum_timesteps = 50",
        "model.interest.num_timesteps: unknown key (did you mean 'num_train_timesteps'?) [a.toml]",
    ),
    "unknown section": (
        "[optimiser]\nname = 'adam'",
        "optimiser: unknown key (keys here: data, model, sparse, dense, trainer, seed, betas) "
        "[a.toml]",
    ),
    "string for a number": (
        "[dense]\nlr = 'fast'",
        "dense.lr = 'fast': must be a number > 0 [a.toml]",
    ),
    "value outside a literal": (
        "[dense]\nschedule = 'cosin'",
        "dense.schedule = 'cosin': must be 'constant', 'linear' or 'cosine' "
        "(did you mean 'cosine'?) [a.toml]",
    ),
    "true for an integer": (
        "[model]\nover_arch_layer_sizes = [64, true]",
        "model.over_arch_layer_sizes.1 = true: must be an integer > 0 [a.toml]",
    ),
    "unknown kind": (
        "[model.interest]\nkind = 'cpd'",
        "model.interest.kind = 'cpd': must be 'cdp' or 'twin' (did you mean 'cdp'?) [a.toml]",
    ),
    "out of range": (
        "[model.interest]\nnoise_loss_weight = -1",
        "model.interest.noise_loss_weight = -1: must be a number >= 0 and <= 10 [a.toml]",
    ),
    "sections in conflict": (
        "[trainer]\nglobal_batch_size = 4095",
        "trainer.global_batch_size = 4095: must be a multiple of trainer.num_ranks = 4 [a.toml]",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD_INPUTS.values(), ids=list(BAD_INPUTS))
def test_a_bad_input_is_told_key_value_and_what_is_allowed(text: str, expected: str) -> None:
    assert lines(layer("a.toml", text)) == [expected]


def test_all_mistakes_are_reported_at_once() -> None:
    layer("a.toml", "[model]\nover_arch_layer_sizes = ['x']\n[trainer]\nnum_ranks = 3")
    assert message("a.toml", "dense.lrr=1", "seed=-1") == (
        "bad config\n"
        "  data.dir: required key is missing (a path)\n"
        "  model.over_arch_layer_sizes.0 = 'x': must be an integer > 0 [a.toml]\n"
        "  dense.lrr: unknown key (did you mean 'lr'?) [command line]\n"
        "  seed = -1: must be an integer >= 0 [command line]"
    )


def test_conflicts_are_reported_together_and_beside_wrong_keys() -> None:
    arguments = ["trainer.num_ranks=3", "trainer.compile=true", "model.interest.kind=twin"]
    conflicts = [
        "trainer.global_batch_size = 4096: must be a multiple of trainer.num_ranks = 3 [default]",
        "trainer.compile = true: must be false with model.interest.kind = 'twin' [command line]",
    ]
    assert lines(*arguments) == conflicts
    wrong = "seed = 'x': must be an integer >= 0 [command line]"
    assert lines(*arguments, "seed=x") == [wrong, *conflicts]


def test_a_conflict_with_a_key_in_doubt_waits() -> None:
    assert lines("trainer.num_rank=5", "trainer.global_batch_size=5") == [
        "trainer.num_rank: unknown key (did you mean 'num_ranks'?) [command line]"
    ]


def test_a_plain_error_of_a_validator_names_its_section() -> None:
    class Range(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    class Root(Config):
        range: Range = Range()

    with pytest.raises(
        ConfigError, match=r"^bad config\n  range: low must not exceed high \[command line\]$"
    ):
        load_config(Root, ["range.low=2"])
    with pytest.raises(ConfigError, match=r"^bad config\n  low must not exceed high$"):
        load_config(Range, ["low=2"])


def test_keys_of_a_conflict_are_relative_to_the_section_that_raises_it() -> None:
    class Range(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.low > self.high:
                raise ConfigConflicts([("low", f"must not exceed range.high = {self.high}")])
            return self

    class Root(Config):
        range: Range = Range()

    with pytest.raises(
        ConfigError, match=r"\n  range\.low = 2: must not exceed range\.high = 1 \["
    ):
        load_config(Root, ["range.low=2"])
    with pytest.raises(ValidationError, match=r"low: must not exceed range\.high = 1"):
        Range(low=2)


def test_a_key_of_another_kind_is_recognised() -> None:
    assert lines("model.interest.kind=twin", "model.interest.num_train_timesteps=5") == [
        "model.interest.num_train_timesteps: unknown key (it is a key of kind = 'cdp') "
        "[command line]"
    ]


def test_a_misspelt_key_is_corrected_inside_the_chosen_kind() -> None:
    assert lines("model.interest.kind=twin", "model.interest.num_head=5") == [
        "model.interest.num_head: unknown key (did you mean 'num_heads'?) [command line]"
    ]


def test_a_misspelt_kind_is_corrected_beside_the_kind_of_a_layer() -> None:
    assert lines("model.interest.kind=twin", "model.interest.kidn=cdp") == [
        "model.interest.kidn: unknown key (did you mean 'kind'?) [command line]"
    ]


def test_a_key_without_its_section_is_told_its_place() -> None:
    assert lines("max_steps=5", "lr=1") == [
        "max_steps: unknown key (did you mean 'trainer.max_steps'?) [command line]",
        "lr: unknown key (did you mean 'sparse.lr' or 'dense.lr'?) [command line]",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.compile=1", "trainer.compile = 1: must be true or false"),
        ("dense.lr=true", "dense.lr = true: must be a number > 0"),
        ("seed=1.0", "seed = 1.0: must be an integer >= 0"),
        ("dense.lr=nan", "dense.lr = nan: must be a finite number"),
        ("dense.lr=inf", "dense.lr = inf: must be a finite number"),
        (
            "trainer.notes=2018-11-07",
            "trainer.notes = 2018-11-07: dates and times are not used here; in quotes it is a "
            "string",
        ),
        ("trainer.notes=7", "trainer.notes = 7: must be a string in quotes"),
        ("data.dir=7", "data.dir = 7: must be a path in quotes"),
        (
            "data.dir=~/log",
            "data.dir = '~/log': the ~ of a shell means nothing here: write the whole path",
        ),
        ("trainer=7", "trainer = 7: must be a table"),
        ("seed={a = 1}", "seed = {a = 1}: must be an integer >= 0"),
        (
            "model.over_arch_layer_sizes=64",
            "model.over_arch_layer_sizes = 64: must be a list of integers > 0",
        ),
        ("betas=[0.9]", "betas = [0.9]: must be a list of 2: a number, a number"),
        ("betas=[0.9, 1, 2]", "betas = [0.9, 1, 2]: must be a list of 2: a number, a number"),
        ("data.column_weights.a=x", "data.column_weights.a = 'x': must be a number"),
    ],
)
def test_a_wrong_type_is_told_the_right_one(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, [override] + ["data.dir=log"] * ("data.dir" not in override))
    assert str(caught.value) == f"bad config\n  {expected} [command line]"


def test_a_list_that_only_lacks_its_wrong_element_is_not_said_to_be_too_short() -> None:
    from cdp_torchrec.benchmark.histories.config import HistoryBenchmarkConfig

    with pytest.raises(ConfigError) as caught:
        load_config(HistoryBenchmarkConfig, ["benchmark.lengths=[0]"])
    assert str(caught.value) == (
        "bad config\n  benchmark.lengths.0 = 0: must be an integer > 0 [command line]"
    )


def test_an_optional_key_must_default_to_none() -> None:
    with pytest.raises(TypeError, match=r"Clip\.norm: an optional key defaults to None"):

        class Clip(Config):
            norm: float | None = 1.0


def test_a_section_is_not_compared_by_the_default_of_a_key_that_is_wrong() -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    cdp = [str(CONFIGS / "interest" / "cdp.toml"), "data.dir=d"]
    with pytest.raises(ConfigError) as caught:
        load_config(ExperimentConfig, [*cdp, "model.interest.num_inference_steps=-1"])
    assert str(caught.value).splitlines()[1:] == [
        "  model.interest.num_inference_steps = -1: must be an integer >= 0 [command line]"
    ]


def test_a_sequence_shorter_than_its_module_reads_is_refused() -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    settings = ["data.dir=d", "data.history.max_length=50"]
    message = r"data.history.max_length = 50: keeps 50 behaviours, but .* reads the last 51"
    with pytest.raises(ConfigError, match=message):
        load_config(ExperimentConfig, [*settings, "model.interest={kind='hstu',max_length=51}"])


def test_ages_of_counts_must_rise() -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    with pytest.raises(ConfigError, match=r"count_ages must rise, found \[1.0, 7.5, 7.5\]"):
        load_config(ExperimentConfig, ["data.dir=d", "data.history.count_ages=[1, 7.5, 7.5]"])


def test_segments_of_sums_and_counts_may_reach_beyond_a_sequence() -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    settings = ["data.dir=d", "data.history.max_length=50", "data.history.count_segments=[60]"]
    pooled = "model.interest={kind='pooled',recency_segments=[20,30]}"
    config = load_config(ExperimentConfig, [*settings, pooled])
    assert config.data.history.count_segments == (60,)
