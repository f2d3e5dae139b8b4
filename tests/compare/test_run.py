"""A table can be interrupted, shared and repeated without mixing or repeating results."""

import json
import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cdp_torchrec.commands import compare
from cdp_torchrec.compare import run
from cdp_torchrec.compare.cells import Cell, load_table
from cdp_torchrec.compare.chances import read_chances
from cdp_torchrec.compare.choice import best_point
from cdp_torchrec.compare.output import write_table
from cdp_torchrec.compare.results import read_failure, read_result
from cdp_torchrec.compare.run import run_table
from cdp_torchrec.config import ConfigError, dump_toml
from cdp_torchrec.data.loader import Share
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.experiment import open_data, train
from cdp_torchrec.model.ranking_model import RankingModel
from cdp_torchrec.run import writer
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.lock import RunInUseError
from cdp_torchrec.run.monitor import Monitor
from tests.compare.conftest import CPU, MakeTable, arguments, copied, write_table_file
from tests.distributed.spawn import run_ranks
from tests.runs import recorded
from tests.squeeze import squeezed


def test_every_row_is_trained_at_all_grid_points_once_and_at_the_best_with_all_seeds(
    finished: tuple[Path, Path],
) -> None:
    _, runs = finished
    cells = [*(runs / "cells" / "tiny" / "pooled").glob("*/*.json")]
    assert sorted(cell.stem for cell in cells) == ["seed-0", "seed-0", "seed-1"]

    def validation(cell: Path) -> float:
        return json.loads(cell.read_text())["cost"]["validation"]

    best = max((cell for cell in cells if cell.stem == "seed-0"), key=validation)
    assert best.parent / "seed-1.json" in cells
    assert (runs / "cells" / "tiny" / "untrained" / "bayes.json").is_file()
    ideal = json.loads((runs / "cells" / "tiny" / "untrained" / "ideal.json").read_text())
    assert 0 < ideal["metrics"]["observer_error"] < 0.01


def test_a_table_goes_on_from_its_small_files_alone(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path, runs = finished
    shutil.copytree(runs / "cells", tmp_path / "runs" / "cells")
    table = load_table(arguments(path, tmp_path / "runs"))
    with mock.patch.object(run, "train_experiment", side_effect=AssertionError("trained again")):
        assert run_table(table, CPU) == {}
    there = squeezed(write_table(load_table(arguments(path, runs))))
    here = squeezed(write_table(table))
    assert here == there.replace(str(runs), str(tmp_path / "runs"))
    sizes = [file.stat().st_size for file in (runs / "cells").rglob("*.json")]
    assert max(sizes) < 8000  # with 50 replicates; 16 kB with 400


def test_parameters_are_those_of_the_model_before_it_is_sharded(
    finished: tuple[Path, Path],
) -> None:
    table = load_table(arguments(*finished))
    cell = table.tuning_cells("tiny", "pooled")[0]
    result = read_result(cell.file)
    assert result is not None
    assert result.cost is not None
    layout = open_data(cell.config, share=Share(0, 1), global_batch_size=8).layout
    whole = sum(p.numel() for p in RankingModel(layout, cell.config.model).parameters())
    assert result.cost.dense_parameters + result.cost.sparse_parameters == whole
    (row,) = [row for row in read_chances(table)["tiny"] if row.row == "pooled"]
    assert row.dense_parameters == result.cost.dense_parameters
    assert row.sparse_parameters == result.cost.sparse_parameters
    assert result.cost.cpu_s > 0
    assert result.cost.latency.num_candidates == 8
    assert 0 < result.cost.latency.median_ms <= result.cost.latency.p90_ms


def test_a_cell_is_the_run_that_train_makes_of_its_configuration(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    table = load_table(arguments(*finished))
    cell = table.cell("tiny", "pooled", table.points("pooled")[0], 0)
    result = read_result(cell.file)
    assert result is not None
    alone = cell.config.model_copy(update={"run": RunConfig(dir=tmp_path / "alone")})
    report = train(alone, CPU)
    assert (report.gauc, report.log_loss) == (result.value("gauc"), result.value("log_loss"))


def test_finished_cells_are_not_run_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    table = load_table(copied(finished, tmp_path))
    with mock.patch.object(run, "train_experiment", side_effect=AssertionError("trained again")):
        assert run_table(table, CPU) == {}


@pytest.mark.slow
def test_an_interrupted_cell_continues_and_ends_as_if_nothing_had_happened(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path, runs = finished
    table = load_table(arguments(path, tmp_path / "runs"))
    record = Monitor.record

    def interrupted(self: Monitor, kind: str, step: int, values: Any) -> None:
        if kind == "validation" and step == 4:
            raise KeyboardInterrupt
        record(self, kind, step, values)

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.5)  # the checkpoint of step 2 is in flight when the interruption comes
        return dcp_save(*args, **kwargs)

    cell = table.tuning_cells("tiny", "pooled")[0]
    dcp_save = writer.dcp.save
    with (
        mock.patch.object(Monitor, "record", interrupted),
        mock.patch.object(writer.dcp, "save", slowly),
        pytest.raises(KeyboardInterrupt),
    ):
        run_table(table, CPU)
    assert read_result(cell.file) is None
    reason = run._attempt(cell, CPU, num_bootstrap=50)
    assert reason is None
    assert recorded(cell.directory, "step") == [1, 2, 3, 4]
    resumed, straight = (
        read_result(cell.file),
        read_result(runs / cell.file.relative_to(tmp_path / "runs")),
    )
    assert resumed is not None
    assert straight is not None
    assert resumed.metrics == straight.metrics


def test_a_cell_without_a_checkpoint_starts_anew(make_table: MakeTable, one_rank: None) -> None:
    table = make_table()
    cell = table.tuning_cells("tiny", "none")[0]
    cell.directory.mkdir(parents=True)
    (cell.directory / "metrics.jsonl").write_text('{"kind": "train", "step": 77}\n')
    assert run._attempt(cell, CPU, num_bootstrap=50) is None
    assert recorded(cell.directory, "step") == [1, 2, 3, 4]


def test_a_cell_that_was_begun_is_gone_on_with_though_its_dataset_has_moved(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    table = load_table(copied(finished, tmp_path))
    cell = table.tuning_cells("tiny", "pooled")[0]
    cell.file.unlink()
    data = cell.config.data.model_copy(update={"dir": tmp_path / "before"})
    begun = cell.config.model_copy(update={"data": data})
    (cell.directory / "config.toml").write_text(dump_toml(begun))
    assert not [*run._foreign_cells(table)]
    other = begun.model_copy(update={"seed": 1})
    (cell.directory / "config.toml").write_text(dump_toml(other))
    [line] = run._foreign_cells(table)
    assert line.startswith(f"{cell.directory}: holds a cell with seed = 1, the table asks for 0")


def test_cells_of_another_configuration_are_refused_with_directory_and_key(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    changed = [*copied(finished, tmp_path), 'settings=["trainer.max_steps=5"]']
    with pytest.raises(ConfigError) as error:
        run_table(load_table(changed), CPU)
    assert (
        f"{tmp_path}/runs/cells/tiny/pooled/optimizer.dense.lr=0.001/seed-0.json: holds a cell "
        "with trainer.log_every_steps = 1, the table asks for 10"
    ) in str(error.value)
    assert len(str(error.value).splitlines()) == 4  # each of the three cells is named


def test_what_a_damaged_cell_has_left_is_named(make_table: MakeTable) -> None:
    table = make_table()
    first, second = table.tuning_cells("tiny", "none")
    for cell in (first, second):
        cell.directory.mkdir(parents=True)
    (first.directory / "config.toml").write_text("seed = ")
    with pytest.raises(ConfigError, match=rf"{first.directory}/config.toml: not valid TOML.*remo"):
        run_table(table, CPU)
    (second.directory / "failed.json").write_text("")
    assert "failed.json does not say why" in (read_failure(second.directory) or "")


@pytest.mark.slow
def test_a_failing_cell_is_listed_and_does_not_stop_the_others(
    make_table: MakeTable, one_rank: None
) -> None:
    table = make_table(
        "seeds=[0]",
        'models.broken=["optimizer.sparse.lr=1e38"]',
        'select.models=["broken", "none"]',
        'grid={"optimizer.dense.lr"=[0.001]}',
    )
    failures = run_table(table, CPU)
    assert failures
    assert all(name.startswith("tiny/broken/") for name in failures)
    assert all("NonFiniteError: step" in reason for reason in failures.values())
    failed = table.tuning_cells("tiny", "broken")[0]
    assert "lower the learning rates" in (read_failure(failed.directory) or "")
    assert read_result(table.tuning_cells("tiny", "none")[0].file) is not None
    text = squeezed(write_table(table))
    assert f"- {failed.name}: NonFiniteError" in text
    assert "| broken |" not in text


@pytest.mark.slow
def test_a_world_waits_for_a_search_on_the_first_one_and_says_so(
    make_table: MakeTable, one_rank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds = (
        'datasets.second=["data.toml"]',
        'groups.worlds=["tiny", "second"]',
        'select.datasets=["second"]',
        'select.models=["none"]',
        "seeds=[0]",
    )
    searched = make_table(*worlds)
    assert run_table(searched, CPU) == {}
    assert (
        "not run: second/none, seed 0: its trials on tiny, which choose the grid point, have "
        "failed or are not finished"
    ) in capsys.readouterr().out
    assert not [*searched.run_dir.glob("cells/second/none/**/*.json")]
    # One trial leaves nothing to choose.
    single = make_table(*worlds, 'grid={"optimizer.dense.lr"=[0.001]}')
    assert run_table(single, CPU) == {}
    assert "not run" not in capsys.readouterr().out
    assert [path.stem for path in single.run_dir.glob("cells/second/none/**/*.json")] == ["seed-0"]


def test_a_cell_that_another_process_finishes_has_not_failed(
    make_table: MakeTable, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_point = 'grid={"optimizer.dense.lr"=[0.001]}'
    table = make_table('select.models=["none"]', one_point)
    tried: list[str] = []

    def in_use(cell: Cell, *_: object, **__: object) -> str:
        tried.append(cell.name)
        return "run.dir is in use"

    monkeypatch.setattr(run, "_attempt", in_use)
    monkeypatch.setattr(run, "best_point", lambda *_: table.points("none")[0])
    monkeypatch.setattr(run, "_is_finished", lambda cell: cell.name in tried and cell.seed == 0)
    failures = run_table(table, CPU)
    assert len(tried) == 2
    assert failures == {tried[1]: "run.dir is in use"}


def test_a_cell_that_another_process_has_leaves_the_choice_open(
    make_table: MakeTable, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table()
    first, _ = table.tuning_cells("tiny", "none")
    monkeypatch.setattr(
        run, "train_experiment", mock.Mock(side_effect=RunInUseError.of(["in use"]))
    )
    reason = run._attempt(first, CPU, num_bootstrap=50)
    assert reason is not None
    assert "in use" in reason
    assert read_failure(first.directory) is None
    assert best_point(table, "tiny", "none") is None


def test_a_cell_that_was_finished_meanwhile_keeps_the_cost_of_its_training(
    finished: tuple[Path, Path], tmp_path: Path, one_rank: None
) -> None:
    table = load_table(copied(finished, tmp_path))
    cell = table.tuning_cells("tiny", "pooled")[0]
    before = cell.file.read_bytes()
    assert run._attempt(cell, CPU, num_bootstrap=50) is None
    assert cell.file.read_bytes() == before


def test_another_number_of_replicates_is_refused_before_anything_is_trained(
    finished: tuple[Path, Path], tmp_path: Path, one_rank: None
) -> None:
    table = load_table([*copied(finished, tmp_path), "num_bootstrap=60", "seeds=[0, 1, 2]"])
    with pytest.raises(ConfigError, match="cell with num_bootstrap = 50, the table asks for 60"):
        run_table(table, CPU)


def test_untrained_scorers_with_another_number_of_replicates_are_refused_too(
    finished: tuple[Path, Path], tmp_path: Path, one_rank: None
) -> None:
    """All that an attempt has left which was stopped in its first cell."""
    asked = [*copied(finished, tmp_path), "num_bootstrap=60"]
    for path in (tmp_path / "runs").glob("*/**/pooled"):
        shutil.rmtree(path)
    with pytest.raises(ConfigError, match="untrained: holds a cell with num_bootstrap = 50"):
        run_table(load_table(asked), CPU)


def on_two_ranks(path: str, run_dir: str) -> tuple[dict[str, str], list[float]]:
    one_point = 'grid={"optimizer.dense.lr"=[0.001]}'
    table = load_table([*arguments(Path(path), Path(run_dir)), "seeds=[0]", one_point])
    failures = run_table(table, CPU)
    results = [read_result(cell.file) for cell in table.tuning_cells("tiny", "pooled")]
    return failures, [result.value("gauc") for result in results if result is not None]


def test_the_command_fails_after_the_table_if_a_cell_has_failed(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "init_process_group", lambda ranks: CPU)
    monkeypatch.setattr(
        run, "run_table", lambda table, device, announce: {"tiny/none/x/seed-0": "it broke"}
    )
    with pytest.raises(compare.FailedCellsError, match=r"1 cell is not finished:\n .*broke"):
        compare.main(arguments(*finished))
    assert "| **pooled** |" in squeezed(capsys.readouterr().out)


def test_a_table_that_could_not_be_written_is_not_begun(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(compare, "init_process_group", joined)
    with pytest.raises(ConfigError, match=r"run_dir = '/proc/table': /proc cannot hold files"):
        compare.main(arguments(finished[0], Path("/proc/table")))


def test_the_ranks_of_a_table_wait_as_long_as_its_cells_say(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(compare, "init_process_group", joined)
    settings = 'settings=["ranks.collective_timeout_s=7", "ranks.silence_limit_s=8"]'
    with pytest.raises(InterruptedError):
        compare.main([*arguments(finished[0], tmp_path), settings])
    joined.assert_called_once_with(RanksConfig(collective_timeout_s=7, silence_limit_s=8))


def test_a_cell_leaves_the_terminal_to_the_bar_of_the_table(
    make_table: MakeTable, one_rank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run._attempt(make_table().tuning_cells("tiny", "none")[0], CPU, num_bootstrap=50)
    said = capsys.readouterr()
    assert said.out == ""
    assert "step" not in said.err
    assert "test" not in said.err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_fill_the_same_cells(
    finished: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path
) -> None:
    path = write_table_file(tmp_path, tiny_dataset)
    outcomes = run_ranks(2, on_two_ranks, str(path), str(tmp_path / "runs"))
    assert [failures for failures, _ in outcomes] == [{}, {}]
    table = load_table(arguments(*finished))
    alone = read_result(table.tuning_cells("tiny", "pooled")[0].file)
    assert alone is not None
    assert outcomes[0][1] == pytest.approx([alone.value("gauc")], abs=2e-3)
