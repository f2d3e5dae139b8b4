"""Everything wrong with a table is said before anything runs."""

from pathlib import Path

import pytest

from cdp_torchrec.compare.cells import load_table
from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.compare.run import run_table
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.help import describe
from tests.compare.conftest import CPU, MakeTable
from tests.paths import CONFIGS

COMPARE = CONFIGS / "compare"


def test_all_bad_layers_and_keys_are_reported_together(
    make_table: MakeTable, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        make_table(
            'models.gone=["nowhere.toml"]',
            'models.odd=["model.embeding_dim=8"]',
            'datasets.later=["data.toml", "seed=3"]',
        )
    text = str(error.value)
    assert "nowhere.toml: no such file" in text
    assert "model.embeding_dim: unknown key (did you mean 'embedding_dim'?)" in text
    assert "(in tiny/odd/optimizer.dense.lr=0.001 and 3 more)" in text
    assert "seed: is set by seeds of the table" in text
    assert not (tmp_path / "runs").exists()


def test_a_missing_dataset_is_reported_before_the_first_cell(
    make_table: MakeTable, tmp_path: Path, one_rank: None
) -> None:
    table = make_table('datasets.gone=["data.toml", "data.dir=nowhere"]')
    with pytest.raises(ConfigError, match=r"data.dir = 'nowhere': there is no dataset \(in gone\)"):
        run_table(table, CPU)
    assert not (tmp_path / "runs").exists()


def test_a_cell_that_does_not_fit_its_dataset_is_reported_before_the_first_cell(
    make_table: MakeTable, tmp_path: Path, one_rank: None
) -> None:
    table = make_table('models.odd=["model.interaction.exclude=[\\"weight\\"]"]')
    with pytest.raises(ConfigError, match=r"no feature 'weight'.*\(in tiny/odd\)"):
        run_table(table, CPU)
    assert not (tmp_path / "runs").exists()


def test_a_grid_key_that_a_setting_sets_too_is_refused(make_table: MakeTable) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.dense.lr: set twice"):
        make_table('settings=["optimizer.dense.lr=0.1"]')


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference=cdp", "reference = 'cdp': there is no row 'cdp' in models"),
        ('select.models=["nome"]', "there is no row 'nome' in models, only none, pooled"),
        ('select.datasets=["huge"]', "there is no 'huge' in datasets, only tiny"),
        ('models.untrained=["data.toml"]', "is the directory of the untrained scorers"),
        ('models={"a/b"=[]}', "use letters, digits"),
        ("seeds=[1, 1]", "seeds = [1, 1]: repeats a seed"),
        ('floors=["pooled"]', "reference = 'pooled': is one of floors"),
        ('models.odd=["data.dir=elsewhere"]', "data.dir = elsewhere: must be the same in all rows"),
        ("settings=['run.resume=true']", "run: every cell has a directory of its own"),
        (
            "settings=['data.validation_fraction=0']",
            "data.validation_fraction = 0: a comparison chooses on validation",
        ),
    ],
)
def test_mistakes_in_the_table_are_named(
    make_table: MakeTable, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_table(override)
    assert message in str(error.value)


def test_a_table_without_a_file_says_what_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"compare.py configs/compare/table1.toml"):
        load_table(["seeds=[0]"])


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_shipped_tables_tune_every_row_equally_over_five_seeds(name: str) -> None:
    table = load_table([str(COMPARE / f"{name}.toml")])
    assert len(table.config.seeds) >= 5
    assert len(table.points) == 2
    assert table.run_dir == Path("runs") / name
    per_row = {(d, m): table.tuning_cells(d, m) for d, m, _ in table.configs}
    assert {len(cells) for cells in per_row.values()} == {2}
    directories = [cell.directory for cell in table.cells()]
    assert len(set(directories)) == len(directories)


def test_help_explains_every_key() -> None:
    text = describe(CompareConfig)
    for key in ("run_dir", "seeds", "[select]", "num_bootstrap = 1000"):
        assert key in text
