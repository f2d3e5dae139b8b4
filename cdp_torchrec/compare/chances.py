"""The table of chances: what each row of a comparison sees, has and may try."""

# B impressions, D embedding dim

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from cdp_torchrec.compare.cells import Table
from cdp_torchrec.compare.histories import describe_history
from cdp_torchrec.compare.results import read_result
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.config import SoftLabelsConfig
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.model.impression_features import ITEM_KEY
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.text_table import markdown_table
from cdp_torchrec.whole_file import write_json

_PROBED_REQUESTS = 8
_PROBED_IMPRESSIONS = 64
_PARTS = {
    "user": "user",
    "query": "query",
    "item": "item",
    "item_attributes": "item",
    "context": "context",
    "scene": "scene",
}
"""Parts of the module's input that features fill, and their roles."""


@dataclass(frozen=True, kw_only=True)
class Chances:
    """What one row sees and has on a dataset, at its first trial."""

    dataset: str
    row: str
    history: str
    """In which forms, and how many behaviours at most."""
    module_reads: tuple[str, ...]
    """Parts of InterestInput that the module looks at and that the dataset fills."""
    unseen: tuple[str, ...]
    """Features that neither the tower nor the module sees."""
    labels: str
    """What its click loss is against."""
    dense_parameters: int
    sparse_parameters: int
    auxiliary_losses: Mapping[str, float]
    """Weight of each."""
    searched: tuple[str, ...]
    """Keys whose values differ between the trials."""
    trials: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU seconds of the finished cells of a row on a dataset, and cells to come."""

    search_cpu_s: float
    """Of all trials."""
    cpu_s: float
    """Of all cells, trials included."""
    finished: int
    unfinished: int


def find_chances(table: Table, dataset: str) -> list[Chances]:
    """The chances of all rows on a dataset that is there.

    Raises:
        ConfigError: a row does not fit the dataset.
        DatasetError: the dataset is incomplete or damaged.
    """
    return [_of_row(table, dataset, model) for model in table.config.models]


def _of_row(table: Table, dataset: str, model: str) -> Chances:
    config = table.first_config(dataset, model)
    reader = DatasetReader(config.data)
    layout = reader.layout(
        config.model.interest.history, history_counts=config.model.interaction.history_counts
    )
    with torch.random.fork_rng(devices=[]):
        arch = build_ranking_arch(layout, config.model)
    parts = _parts_read(arch.sets[0], layout, config, _probe(reader, layout))
    roles = {_PARTS[part] for part in parts if part != "item"}
    rows = sum(of_entity.num_embeddings for of_entity in layout.tables.values())
    return Chances(
        dataset=dataset,
        row=model,
        history=describe_history(config),
        module_reads=parts,
        unseen=tuple(
            feature.name
            for feature in reader.schema.features
            if feature.name in config.model.interaction.exclude
            and not (feature.role in roles if feature.name != ITEM_KEY else "item" in parts)
        ),
        labels=_describe_labels(config.data.soft_labels),
        dense_parameters=sum(p.numel() for p in arch.parameters()),
        sparse_parameters=rows * config.model.embedding_dim,
        auxiliary_losses={
            name: weight
            for name, weight in arch.sets[0].interest.loss_weights.items()
            if weight > 0.0
        },
        searched=(*table.config.grid, *table.config.grid_of.get(model, {})),
        trials=len(table.points(model)),
        seeds=len(table.seeds(model)),
    )


def _describe_labels(teacher: SoftLabelsConfig | None) -> str:
    weight = teacher.weight if teacher else 0
    if 0 < weight < 1:
        return f"{weight:g} a teacher's, {1 - weight:g} clicks"
    return "a teacher's" if weight else "clicks"


def _probe(reader: DatasetReader, layout: FeatureLayout) -> Batch:
    order = reader.impressions("test", stop=_PROBED_REQUESTS)
    assembler = reader.assembler(layout, batch_size=_PROBED_IMPRESSIONS, seed=0)
    impressions = order.take(0, 0, min(_PROBED_IMPRESSIONS, order.num_impressions))
    # As in training, where some modules read more.
    return assembler.assemble(impressions, epoch=0)


class _Watched:
    """An input that remembers which of its parts were looked at."""

    def __init__(self, inputs: InterestInput) -> None:
        self._inputs = inputs
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self._inputs, name)


@torch.no_grad()
def _parts_read(
    arch: RankingArch, layout: FeatureLayout, config: ExperimentConfig, batch: Batch
) -> tuple[str, ...]:
    """Parts of the input that the module looks at and that have a width, in their order."""
    if arch.interest.interest_dim == 0:
        return ()
    width = config.model.embedding_dim // config.model.num_embedding_sets
    embeddings = dict(_no_embeddings(layout, batch, width))
    inputs = arch.interest_input(embeddings, batch)
    watched = _Watched(inputs)
    arch.interest(cast(InterestInput, watched))
    return tuple(
        part for part in _PARTS if part in watched.seen and getattr(inputs, part).shape[1] > 0
    )


def _no_embeddings(layout: FeatureLayout, batch: Batch, dim: int) -> Iterator[tuple[str, Tensor]]:
    """Zeros in the shapes of what the lookups return, by key."""
    for feature in layout.features:
        if feature.is_sequence:
            assert batch.sequence is not None
            yield feature.key, torch.zeros(len(batch.sequence[feature.key].values()), dim)
        else:
            yield feature.key, torch.zeros(_PROBED_IMPRESSIONS, dim)


# --- the files -----------------------------------------------------------------------------------

FOLDER = "chances"
"""A file for each dataset, since several processes may fill one table."""
_FIELDS = {field.name for field in fields(Chances)}


def update_chances(table: Table) -> None:
    """Find the chances on the selected datasets and remember them in the table's directory."""
    for dataset in table.selected_datasets:
        found = [asdict(chances) for chances in find_chances(table, dataset)]
        write_json(table.run_dir / FOLDER / f"{dataset}.json", found)


def read_chances(table: Table) -> dict[str, list[Chances]]:
    """The chances on all datasets that cells were run on, by dataset.

    Those that another release wrote otherwise are left out until a run finds them again.
    """
    found = {}
    for dataset in table.config.datasets:
        path = table.run_dir / FOLDER / f"{dataset}.json"
        rows = json.loads(path.read_text()) if path.is_file() else []
        if rows and rows[0].keys() == _FIELDS:
            found[dataset] = [Chances(**row) for row in rows if row["row"] in table.config.models]
    return found


# --- cost and text -------------------------------------------------------------------------------


def find_spent(table: Table, dataset: str, model: str) -> Spent:
    """What the finished cells of a row have cost; trials count where they were run."""
    trials = table.tuning_cells(dataset, model)
    is_searched = table.searched_dataset(dataset) == dataset
    found = [result.cost for cell in trials if (result := read_result(cell.file))]
    search = [cost.cpu_s for cost in found if cost is not None] if is_searched else []
    points = {cell.point for cell in trials}
    later = [
        result.cost.cpu_s
        for point in points
        for cell in table.chosen_cells(dataset, model, point)[is_searched:]
        if (result := read_result(cell.file)) and result.cost is not None
    ]
    planned = is_searched * len(trials) + len(table.seeds(model)) - is_searched
    finished = len(search) + len(later)
    return Spent(
        search_cpu_s=sum(search),
        cpu_s=sum(search) + sum(later),
        finished=finished,
        unfinished=max(0, planned - finished),
    )


def chances_markdown(table: Table) -> str:
    """The tables of all datasets that cells were run on, and what unfinished cells will cost.

    Of a group only the first world has a table: the others differ in their data alone.
    """
    parts, total = [], 0.0
    for dataset, chances in read_chances(table).items():
        spent = {row.row: find_spent(table, dataset, row.row) for row in chances}
        first = table.searched_dataset(dataset)
        shown = f"As on {first}." if first != dataset else _markdown(chances, spent)
        unfinished = sum(row.unfinished for row in spent.values())
        cost = f"{unfinished} unfinished cells in the whole table"
        if (expected := _expected_cpu_s(spent)) is not None:
            total += expected
            cost += f", about {expected:,.0f} CPU s"
        parts.append(f"### Chances on {dataset}\n\n{shown}\n\n{cost}.")
    if total:
        parts.append(
            f"All unfinished cells: about {total:,.0f} CPU s, by what finished cells of the same "
            "row and dataset took, or those of all rows where it has none; datasets without a "
            "finished cell are not in it."
        )
    return "\n\n".join(parts)


def _expected_cpu_s(spent: Mapping[str, Spent]) -> float | None:
    """Of the unfinished cells of a dataset; None without any finished one."""
    finished = sum(row.finished for row in spent.values())
    if not finished:
        return None
    mean = sum(row.cpu_s for row in spent.values()) / finished
    return sum(
        row.unfinished * (row.cpu_s / row.finished if row.finished else mean)
        for row in spent.values()
    )


def _markdown(chances: Sequence[Chances], spent: Mapping[str, Spent]) -> str:
    header = [
        *("row", "history", "module reads", "sees nothing of", "labels", "dense", "sparse"),
        *("auxiliary losses", "searched", "trials", "seeds", "CPU s: search", "all cells"),
    ]
    rows = [list(_cells(row, spent[row.row])) for row in chances]
    return markdown_table(header, rows, left=(0, 1, 2, 3, 4, 7, 8))


def _cells(chances: Chances, spent: Spent) -> Iterator[str]:
    yield chances.row
    yield chances.history
    yield ", ".join(chances.module_reads) or "-"
    yield ", ".join(chances.unseen) or "-"
    yield chances.labels
    yield f"{chances.dense_parameters:,}"
    yield f"{chances.sparse_parameters:,}"
    yield ", ".join(f"{n} x {w:g}" for n, w in chances.auxiliary_losses.items()) or "-"
    yield ", ".join(key.removeprefix("model.interest.") for key in chances.searched) or "-"
    yield str(chances.trials)
    yield str(chances.seeds)
    yield f"{spent.search_cpu_s:,.0f}" if spent.finished else "-"
    yield f"{spent.cpu_s:,.0f}" if spent.finished else "-"
