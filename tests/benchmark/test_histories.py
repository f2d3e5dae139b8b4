"""The history benchmark measures what it says, and never hangs."""

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cdp_torchrec.benchmark.histories import table as history_table
from cdp_torchrec.benchmark.histories.case import (
    Contestant,
    HistoryCase,
    ModuleCost,
    cap,
    make_contestant,
    measure,
    time_rounds,
    uncapped,
)
from cdp_torchrec.benchmark.histories.config import HistorySettings
from cdp_torchrec.benchmark.histories.inputs import make_inputs
from cdp_torchrec.benchmark.histories.isolated import (
    Limits,
    PassedLimit,
    peak_memory_mib,
    reset_peak_memory,
    run_isolated,
)
from cdp_torchrec.benchmark.histories.table import as_json, as_markdown, run_history_benchmark
from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import Config, load_config
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.prepare.workplace import PreparationError
from cdp_torchrec.interest import (
    DienConfig,
    DinConfig,
    InterestConfig,
    InterestDims,
    MarmConfig,
    PooledConfig,
    build_interest,
)
from cdp_torchrec.model.config import InteractionConfig
from cdp_torchrec.timer import Timer
from tests.clock import Clock
from tests.paths import CONFIGS
from tests.squeeze import squeezed

FILES = sorted((CONFIGS / "interest").glob("*.toml"))
TINY = HistorySettings(lengths=(4, 8), batch_size=12, num_requests=3, embedding_dim=8, max_rounds=2)
POOLED = PooledConfig(kind="pooled")
DIEN = DienConfig(kind="dien")
DIMS = InterestDims(
    user=4, query=4, item=4, item_attributes=8, context=8, scene=4, category=4, action=4
)
COST = ModuleCost(
    train_ms=1234.5,
    score_ms=1.5,
    train_ratio=3.25,
    score_ratio=1.0,
    train_mib=64.0,
    score_mib=8.0,
    num_rounds=5,
)


class _Model(Config):
    interest: InterestConfig
    interaction: InteractionConfig = InteractionConfig()


class _Experiment(Config):
    model: _Model


def load_interest(path: Path) -> InterestConfig:
    return load_config(_Experiment, [str(path)]).model.interest


# --- one case ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [f for f in FILES if f.stem not in ("none", "counts")], ids=lambda path: path.stem
)
def test_every_interest_module_can_be_measured(path: Path) -> None:
    config = uncapped(load_interest(path), 12)
    cost = measure(HistoryCase(path.stem, 12, config, POOLED, TINY))
    assert cost.train_ms > cost.score_ms > 0
    assert cost.train_ratio > 0 and cost.score_ratio > 0
    assert cost.num_rounds == 2


def test_scoring_and_training_alternate_and_are_compared_within_rounds() -> None:
    clock = Clock()
    pooled = Contestant(train=clock.passing(0.002), score=clock.passing(0.001))
    # The machine is slower in the second round.
    row = Contestant(train=clock.passing(0.2, 2.0, 0.3), score=clock.passing(0.1, 0.1, 0.4))
    found = time_rounds(pooled, row, Timer(clock=clock), range(3))
    assert list(found) == ["pooled_score", "score", "pooled_train", "train"]
    assert found["train"].ms == pytest.approx([200, 2000, 300])
    assert found["train"].ratio_to(found["pooled_train"]) == pytest.approx(150)
    assert found["score"].ratio_to(found["pooled_score"]) == pytest.approx(100)


def test_a_round_takes_the_median_of_several_batches_that_are_quick() -> None:
    clock = Clock()
    varying = (0.001, 0.002, 0.090, 0.003, 0.004)
    pooled = Contestant(train=clock.passing(*varying), score=clock.passing(0.0005))
    row = Contestant(train=clock.passing(*varying), score=clock.passing(0.006))
    found = time_rounds(pooled, row, Timer(clock=clock), range(2))
    assert found["pooled_train"].ms == pytest.approx([3, 3])
    assert found["train"].ratio_to(found["pooled_train"]) == pytest.approx(1)


def test_training_reaches_the_module_and_the_embeddings_and_scoring_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted: list[int] = []
    gradients = torch.autograd.grad

    def grad(total: torch.Tensor, leaves: list[torch.Tensor], **options: Any) -> Any:
        found = gradients(total, leaves, **options)
        wanted.append(sum(g is not None for g in found))
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    contestant = make_contestant(DinConfig(kind="din"), 4, TINY)
    contestant.score()
    assert wanted == []
    contestant.train()
    parameters = len(list(build_interest(DinConfig(kind="din"), DIMS).parameters()))
    assert wanted[0] > parameters  # and embeddings


def test_histories_are_between_half_of_the_length_and_all_of_it() -> None:
    settings = HistorySettings(batch_size=64, num_requests=16, embedding_dim=4)
    inputs = make_inputs(HistoryLookup(gated=True, recent=True), DIMS, 101, settings)
    for sequence in (inputs.gated, inputs.recent):
        assert sequence is not None
        lengths = sequence.index.lengths[:16]
        assert 51 <= lengths.min() < lengths.max() == 101
        assert sequence.item.shape == (lengths.sum(), 4)
        assert sequence.index.sequence.unique().tolist() == list(range(16))


def test_a_module_that_reads_a_short_part_gets_no_more() -> None:
    settings = HistorySettings(batch_size=8, num_requests=2, embedding_dim=4)
    inputs = make_inputs(HistoryLookup(recent=True, recent_length=10), DIMS, 100, settings)
    assert inputs.recent is not None
    assert inputs.recent.index.lengths[:2].tolist() == [10, 10]


def test_a_cap_in_the_file_is_raised_to_the_length() -> None:
    assert cap(DIEN) == 50
    assert uncapped(DIEN, 2000).history.recent_length == 2000


def test_a_cap_of_each_layer_is_that_of_all_of_them() -> None:
    assert cap(MarmConfig(kind="marm", max_length=50, num_layers=3)) == 150


def test_a_module_without_a_cap_is_left_as_it_is() -> None:
    din = DinConfig(kind="din")
    assert cap(din) is None
    assert uncapped(din, 2000) == din


# --- processes -----------------------------------------------------------------------------------


def test_a_process_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    assert run_isolated(time.sleep, 600, Limits(time_s=0.5, memory_gib=4)) is PassedLimit.TIME
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("allocate", [bytearray, torch.empty], ids=["python", "torch"])
def test_a_process_that_needs_too_much_memory_is_told_apart_from_a_failure(allocate: Any) -> None:
    limits = Limits(time_s=60, memory_gib=2)
    assert run_isolated(allocate, 1 << 33, limits) is PassedLimit.MEMORY


def test_a_failure_in_a_process_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildProcessError, match="exit code 1"):
        run_isolated(int, "three", Limits(time_s=60, memory_gib=4))
    assert "invalid literal" in capfd.readouterr().err


def raised(error: Exception) -> None:
    raise error


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [PreparationError("was not made"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_its_user_can_mend_is_raised_as_it_was(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught:
        run_isolated(raised, error, Limits(time_s=60, memory_gib=4))
    assert str(caught.value) == str(error)
    assert "Traceback" not in capfd.readouterr().err


def test_the_peak_of_memory_outlives_what_was_freed() -> None:
    before = reset_peak_memory()
    torch.ones(1 << 24)
    assert 60 < peak_memory_mib() - before < 80
    assert reset_peak_memory() - before < 30


# --- table ---------------------------------------------------------------------------------------


def test_a_longer_history_is_not_run_after_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[str, int]] = []

    def run_isolated(
        function: object, case: HistoryCase, limits: Limits
    ) -> ModuleCost | PassedLimit:
        run.append((case.row, case.length))
        return PassedLimit.TIME if case.row == "dien" and case.length >= 200 else COST

    monkeypatch.setattr(history_table, "run_isolated", run_isolated)
    settings = HistorySettings(lengths=(50, 200, 1000))
    table = run_history_benchmark({"dien": DIEN, "pooled": POOLED}, POOLED, settings)
    assert ("dien", 200) in run and ("dien", 1000) not in run and ("pooled", 1000) in run
    shown = squeezed(as_markdown(table))
    assert "| dien \\* | 1,234 (3.2x) | > 120 s | - |" in shown
    assert "| pooled | 64 / 8 | 64 / 8 | 64 / 8 |" in shown
    assert "shorter: dien (50)." in shown
    assert [cell.get("passed_limit") for cell in as_json(table)["cells"][:3]] == [
        None,
        "time",
        "not run",
    ]


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_them_with_all_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["batch_size=12", "num_requests=3", "embedding_dim=8", "max_rounds=1", "lengths=[4]"]
    chosen = ['rows=["sasrec"]', f"output={tmp_path / 'out'}"]
    benchmark.main(["history", *(f"benchmark.{setting}" for setting in [*sizes, *chosen])])
    shown = capsys.readouterr().out
    assert "| sasrec \\* |" in squeezed(shown)
    assert (tmp_path / "out" / "history.md").read_text() == shown
    (cell,) = json.loads((tmp_path / "out" / "history.json").read_text())["cells"]
    assert (cell["row"], cell["length"], cell["cap_in_file"]) == ("sasrec", 4, 50)
    assert cell["train_ms"] > 0
