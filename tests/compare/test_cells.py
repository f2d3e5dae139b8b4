"""Everything wrong with a table is said before anything runs."""

import tomllib
from pathlib import Path
from unittest import mock

import pytest

from cdp_torchrec.compare.cells import load_table
from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.compare.run import run_table
from cdp_torchrec.config import ConfigError, toml_file
from cdp_torchrec.config.help import describe
from tests.compare.conftest import CPU, MakeTable
from tests.paths import CONFIGS, ROOT

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
    table = make_table("settings=['model.interaction.exclude=[\"weight\"]']")
    with pytest.raises(ConfigError, match=r"no feature 'weight'.*\(in tiny/none\)"):
        run_table(table, CPU)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("folder", [ROOT, None])
def test_a_table_anywhere_names_layers_of_the_package(
    folder: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder or tmp_path)
    table = tmp_path / "table.toml"
    table.write_text(
        "reference = 'din'\nseeds = [0]\n[datasets]\nd = ['data.dir=log']\n"
        "[models]\ndin = ['configs/interest/din.toml']\ncdp = ['interest/cdp.toml']\n"
    )
    made = load_table([str(table)])
    assert {cell.config.model.interest.kind for cell in made.cells()} == {"din", "cdp"}


def test_a_grid_key_that_a_setting_sets_too_is_refused(make_table: MakeTable) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.dense.lr: set twice"):
        make_table('settings=["optimizer.dense.lr=0.1"]')


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference=cdp", "reference = 'cdp': there is no row 'cdp' in models"),
        ('select.models=["nome"]', "there is no row 'nome' in models, only none, pooled"),
        ('select.datasets=["huge"]', "there is no 'huge' in groups and datasets, only tiny"),
        ('models.untrained=["data.toml"]', "is the directory of the untrained scorers"),
        ('models={"a/b"=[]}', "use letters, digits"),
        ("seeds=[1, 1]", "seeds = [1, 1]: repeats a seed"),
        ('floors=["pooled"]', "reference = 'pooled': is one of floors"),
        ('floors=["none", "none"]', 'floors = ["none", "none"]: repeats a row'),
        ('models.odd=["data.dir=elsewhere"]', "data.dir = elsewhere: must be the same in all rows"),
        (
            "models.odd=['model.interaction.exclude=[\"item_id\"]']",
            "model.interaction.exclude = ('item_id',): must be the same in all rows",
        ),
        (
            'models.odd=[\'data.train_on=["train", "test"]\', \'data.test_on="2030-01-01"\']',
            "data.train_on = ['train', 'test']: must be the same in all rows",
        ),
        (
            "models.odd=['ranks.collective_timeout_s=7200']",
            "ranks.collective_timeout_s = 7200.0: must be the same in all rows",
        ),
        (
            "seeds_of.none=[7, 8]",
            "seeds_of.none = [7, 8]: 'none' has seeds [7, 8] and the reference [0, 1]: rows are "
            "compared on seeds that they share, and there is none",
        ),
        ("seeds_of.pooled=[7, 8]", "seeds_of.pooled = [7, 8]: 'none' has seeds [0, 1] and the"),
        ("num_bootstrap=49", "num_bootstrap = 49: must be an integer >= 50"),
        ("seeds_of.none=[1, 1]", "seeds_of.none = [1, 1]: repeats a seed"),
        ("seeds_of.nome=[1]", "there is no row 'nome' in models"),
        ("search.trials=3", "search.trials = 3: grid has only 2 combinations"),
        ("search.seed=3", "search.seed = 3: has no effect where all combinations of grid are"),
        (
            'grid_of.none={"trainer.max_epochs"=[1, 2, 3]}',
            "grid_of.none.trainer.max_epochs: more values than the 2 trials",
        ),
        (
            'grid_of.none={"optimizer.dense.lr"=[1.0]}',
            "grid_of.none.optimizer.dense.lr: is a key of grid too",
        ),
        (
            "grid.optimizer.sparse.lr=[0.1]",
            'strings; a key with dots stands in quotes: "optimizer.sparse.lr" [command line]',
        ),
        (
            "grid_of.none.trainer.max_epochs=[1, 2]",
            'strings; a key with dots stands in quotes: "trainer.max_epochs" [command line]',
        ),
        ('groups.worlds=["tiny", "huge"]', "there is no 'huge' in datasets"),
        ('groups.worlds=["tiny", "tiny"]', "'tiny' stands twice, first in worlds"),
        (
            'groups.tiny=["tiny", "tiny"]',
            "]: is the name of a dataset",
        ),
        ("settings=['trainer.max_stepz=3']", "trainer.max_stepz: unknown key (did you mean"),
        ("settings=['trainer.patience=0']", "must be an integer > 0 [the table]"),
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


def test_a_group_is_selected_by_its_name(make_table: MakeTable) -> None:
    worlds = [f'datasets.{name}=["data.toml"]' for name in ("second", "third")]
    table = make_table(*worlds, 'groups.both=["third", "tiny"]', 'select.datasets=["both"]')
    assert table.selected_datasets == ("tiny", "third")


def test_a_table_without_a_file_says_what_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"compare.py configs/compare/table1.toml"):
        load_table(["seeds=[0]"])


def row(name: str, *layers: str) -> str:
    """An override that adds a row."""
    return f"models.{name}={[str(CONFIGS / 'interest' / layers[0]), *layers[1:]]}"


DIN, SIM = row("din", "din.toml"), row("sim", "sim_hard.toml")


def test_rows_that_read_all_or_the_same_longest_history_are_compared(make_table: MakeTable) -> None:
    assert make_table(DIN, SIM).selected_models == ("none", "pooled", "din", "sim")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            row("other", "sasrec.toml"),
            "other reads the last 50 behaviours, others 100: rows of a comparison see the same; "
            "lengthen its history, or name 'other' in other_history",
        ),
        (
            row("other", "sim_hard.toml", "data.history.max_length=200"),
            "din reads the last 100 behaviours, others 200",
        ),
        (
            row("other", "twin.toml"),
            "model.interest.num_kept = 100: no search happens among 100 behaviours; raise "
            "data.history.max_length, or name 'other' in other_history",
        ),
        (
            row("other", "qin.toml"),
            "model.interest.num_query_kept = 200: no search happens among 100 behaviours",
        ),
    ],
)
def test_rows_that_see_another_history_are_refused_unless_the_table_says_so(
    make_table: MakeTable, other: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_table(DIN, other)
    assert message in str(error.value)
    named = "din" if message.startswith("din") else "other"
    make_table(DIN, other, f'other_history=["{named}"]')


def test_a_row_that_sees_what_all_see_is_no_exception(make_table: MakeTable) -> None:
    with pytest.raises(ConfigError, match="'din' sees the same history as all others"):
        make_table(DIN, SIM, 'other_history=["din"]')


def test_every_row_tries_the_same_grid_points_whatever_it_searches_of_its_own(
    make_table: MakeTable,
) -> None:
    table = make_table(
        'grid={"optimizer.dense.lr"=[0.1, 0.2, 0.3], "optimizer.sparse.lr"=[0.1, 0.2, 0.3]}',
        'grid_of.pooled={"trainer.max_epochs"=[1, 2]}',
        "search.trials=6",
    )
    none, pooled = table.points("none"), table.points("pooled")
    assert len(set(none)) == 6
    assert [point.settings[:2] for point in pooled] == [point.settings for point in none]
    own = [point.settings[2] for point in pooled]
    assert sorted(own) == ["trainer.max_epochs=1"] * 3 + ["trainer.max_epochs=2"] * 3
    assert own != sorted(own)
    again = make_table(
        'grid={"optimizer.dense.lr"=[0.1, 0.2, 0.3], "optimizer.sparse.lr"=[0.1, 0.2, 0.3]}',
        "search.trials=6",
        "search.seed=1",
    )
    assert set(again.points("none")) != set(none)


def test_a_wide_grid_has_names_that_a_file_system_takes(make_table: MakeTable) -> None:
    keys = [f"optimizer.{side}.{key}" for side in ("dense", "sparse") for key in ("lr", "eps")]
    keys += [f"data.vocabulary.{entity}.min_count" for entity in ("item", "user", "query", "token")]
    wide = ", ".join(f'"{key}"=[1]' for key in keys)
    table = make_table(f'grid={{{wide}, "model.embedding_init_std"=[0.01, 0.02]}}')
    names = {point.name for point in table.points("none")}
    assert len(names) == 2
    assert all(200 < len(",".join(p.settings)) and len(p.name) < 100 for p in table.points("none"))
    for cell in table.tuning_cells("tiny", "none"):
        cell.directory.mkdir(parents=True)


def test_worlds_of_a_group_are_searched_on_the_first_one(make_table: MakeTable) -> None:
    table = make_table('datasets.second=["data.toml"]', 'groups.worlds=["tiny", "second"]')
    assert table.tuning_cells("second", "pooled") == table.tuning_cells("tiny", "pooled")


@pytest.mark.parametrize("name", sorted(path.stem for path in COMPARE.glob("*.toml")))
def test_shipped_tables_give_every_row_the_same_trials(name: str) -> None:
    table = load_table([str(COMPARE / f"{name}.toml")])
    assert table.run_dir == Path("runs") / name
    per_row = {(d, m): table.tuning_cells(d, m) for d, m, _ in table.configs}
    (trials,) = {len(cells) for cells in per_row.values()}
    if name in ("table1", "table2", "noisy"):
        assert trials >= 2
    if name in ("table1", "table2"):
        assert len(table.config.seeds) >= 5
    directories = [cell.directory for cell in table.cells()]
    assert len(set(directories)) == len(directories)
    for name in table.config.groups:
        worlds = [table.any_config(world).data for world in table.config.groups[name]]
        seeds = {world.synthetic.seed for world in worlds if world.synthetic}
        assert len(seeds) == len({world.dir for world in worlds}) == len(worlds)


def test_worlds_of_the_shipped_tables_that_share_a_directory_are_the_same() -> None:
    found: dict[Path, object] = {}
    for path in sorted(COMPARE.glob("*.toml")):
        table = load_table([str(path)])
        for dataset in table.config.datasets:
            data = table.any_config(dataset).data
            assert found.setdefault(data.dir, data.synthetic) == data.synthetic, data.dir


def test_help_explains_every_key() -> None:
    text = describe(CompareConfig)
    for key in ("run_dir", "seeds", "[select]", "num_bootstrap = 400"):
        assert key in text


def test_the_layers_that_cells_share_are_parsed_once(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml_file._parsed.cache_clear()
    parse = mock.Mock(side_effect=tomllib.loads)
    monkeypatch.setattr(toml_file.tomllib, "loads", parse)
    table = make_table('grid={"optimizer.dense.lr"=[0.001, 0.003, 0.01, 0.03]}')
    texts = [call.args[0] for call in parse.call_args_list]
    assert len(table.configs) == 8
    assert any("rowwise_adagrad" in text for text in texts)
    assert len(texts) == len(set(texts))
