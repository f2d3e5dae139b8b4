"""The table of chances says what each row really sees, and what finished cells have cost."""

from dataclasses import replace

from cdp_torchrec.compare.chances import (
    chances_markdown,
    find_chances,
    find_spent,
    update_chances,
)
from cdp_torchrec.compare.results import Result
from tests.compare.conftest import MakeResult, MakeTable, finish
from tests.paths import CONFIGS
from tests.squeeze import squeezed

ROWS = ("sim_hard", "din", "dien", "hstu", "cadirec", "diff4rec", "condition_mlp", "cdp_timestep")
ADDED = [
    *(f'models.{name}=["{CONFIGS}/interest/{name}.toml"]' for name in ROWS),
    'other_history=["dien", "hstu", "cadirec", "diff4rec"]',
]


def test_the_parts_that_a_module_reads_are_those_that_it_looks_at(make_table: MakeTable) -> None:
    table = make_table(*ADDED)
    rows = {row.row: row for row in find_chances(table, "tiny")}
    reads = {name: set(row.module_reads) for name, row in rows.items()}
    everything = {"user", "query", "item", "item_attributes", "context", "scene"}
    assert reads["none"] == set()
    assert reads["pooled"] == reads["cadirec"] == reads["diff4rec"] == {"item"}
    assert reads["din"] == reads["sim_hard"] == {"item", "item_attributes"}
    assert reads["cdp_timestep"] == reads["condition_mlp"] == reads["hstu"] == everything
    assert rows["none"].history == "none"
    assert rows["pooled"].history == "gated, pooled: all"
    assert rows["sim_hard"].history == "gated: last 100; recent: last 10; num_kept = 50"
    assert rows["dien"].history == "recent: last 50"
    assert rows["cdp_timestep"].auxiliary_losses == {"noise_loss": 0.01}
    assert rows["dien"].auxiliary_losses.keys() == {"auxiliary_loss"}
    assert all(row.unseen == () for row in rows.values())


def test_what_neither_tower_nor_module_sees_is_named(make_table: MakeTable) -> None:
    hidden = 'settings=[\'model.interaction.exclude=["user_id", "item_id"]\']'
    rows = {row.row: row for row in find_chances(make_table(*ADDED, hidden), "tiny")}
    unseen = {name: set(row.unseen) for name, row in rows.items()}
    assert unseen["none"] == {"user_id", "item_id"}
    assert unseen["pooled"] == unseen["din"] == {"user_id"}
    assert unseen["cdp_timestep"] == unseen["hstu"] == set()


def test_who_learns_from_a_teacher_is_named(make_table: MakeTable) -> None:
    layer, file = f"{CONFIGS}/interest/pooled.toml", "data.soft_labels.file=soft.parquet"
    weights = {"taught": 1, "half": 0.25, "untaught": 0}
    rows = [
        f'models.{name}=["{layer}", "{file}", "data.soft_labels.weight={weight}"]'
        for name, weight in weights.items()
    ]
    labels = {row.row: row.labels for row in find_chances(make_table(*rows), "tiny")}
    assert labels["none"] == labels["pooled"] == labels["untaught"] == "clicks"
    assert labels["taught"] == "a teacher's"
    assert labels["half"] == "0.25 a teacher's, 0.75 clicks"


def costing(result: Result, cpu_s: float) -> Result:
    assert result.cost is not None
    return replace(result, cost=replace(result.cost, cpu_s=cpu_s))


def test_seconds_of_the_search_and_of_all_cells_are_added_up(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table("seeds=[0, 1, 2]")
    low, high = table.tuning_cells("tiny", "pooled")
    finish(low, costing(make_result(gauc=0.7, validation=0.9), 10.0))
    finish(high, costing(make_result(gauc=0.7, validation=0.8), 20.0))
    finish(
        table.chosen_cells("tiny", "pooled", low.point)[1],
        costing(make_result(gauc=0.7, validation=0.8), 60.0),
    )
    spent = find_spent(table, "tiny", "pooled")
    assert (spent.search_cpu_s, spent.cpu_s) == (30.0, 90.0)
    assert (spent.finished, spent.unfinished) == (3, 1)
    update_chances(table)
    text = squeezed(chances_markdown(table))
    assert "| optimizer.dense.lr | 2 | 3 | 30 | 90 |" in text
    assert "5 unfinished cells in the whole table, about 150 CPU s." in text
    assert "All unfinished cells: about 150 CPU s" in text
    assert [path.name for path in (table.run_dir / "chances").iterdir()] == ["tiny.json"]


def test_only_the_first_world_of_a_group_pays_for_the_search(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table('datasets.second=["data.toml"]', 'groups.worlds=["tiny", "second"]')
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, costing(make_result(gauc=0.7, validation=0.8), 10.0))
    second = find_spent(table, "second", "pooled")
    assert (second.search_cpu_s, second.finished, second.unfinished) == (0.0, 0, 2)
    assert find_spent(table, "tiny", "pooled").unfinished == 1
    update_chances(table)
    text = chances_markdown(table)
    assert "### Chances on second\n\nAs on tiny.\n\n4 unfinished cells in the whole table." in text
