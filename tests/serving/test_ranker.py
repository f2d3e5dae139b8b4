"""Every module's dense part is one program for requests of all sizes, and scores as in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdp_torchrec.config import load_config
from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.dataset import read_schema
from cdp_torchrec.data.history import HistoryStore
from cdp_torchrec.data.layout import build_layout
from cdp_torchrec.data.requests import ImpressionOrder, RequestFiles
from cdp_torchrec.data.sequences import Blocks
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving.lookup import look_up
from cdp_torchrec.serving.ranker import RankerProgram, free_sizes, ranker_inputs
from cdp_torchrec.serving.settings import ExportedConfig
from cdp_torchrec.serving.tables import EmbeddingTables, write_tables

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))


class Setting:
    """A preset with random parameters over the small dataset."""

    def __init__(self, dataset: Path, preset: str, scratch: Path) -> None:
        torch.manual_seed(0)
        config = load_config(
            ExportedConfig,
            [
                str(CONFIGS / "interest" / f"{preset}.toml"),
                f"data.dir={dataset}",
                "model.embedding_dim=8",
                "data.history.count_segments=[1, 2]",
                f"model.interaction.history_counts={str(preset != 'none').lower()}",
            ],
        )
        self.schema = read_schema(config.data)
        self.dataset = dataset
        self.max_length = config.data.history.max_length
        self.layout = build_layout(
            dataset,
            self.schema,
            vocabulary={},
            history=config.model.interest.history,
            count_segments=config.count_segments,
        )
        rows = {entity: table.num_embeddings for entity, table in self.layout.tables.items()}
        values = {entity: torch.randn(count, 8) * 0.3 for entity, count in rows.items()}
        write_tables(scratch / "tables", values, storage="float32", num_shards=1)
        self.tables = EmbeddingTables(scratch / "tables", rows, embedding_dim=8, storage="float32")
        self.arch = RankingArch(self.layout, config.model).eval()
        with torch.no_grad():
            for parameter in self.arch.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))

    def inputs(self, start: int, stop: int, *, blocks: Blocks) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the program (if in one block), and probabilities of some impressions."""
        store = HistoryStore(
            self.dataset / "history",
            self.schema.history,
            num_categories=self.schema.entities["category"].num_ids,
        )
        assembler = BatchAssembler(
            self.layout,
            store,
            batch_size=stop - start + 2,
            max_history_length=self.max_length,
            seed=0,
            blocks=blocks,
        )
        order = ImpressionOrder(RequestFiles(self.dataset, self.schema, "test"), seed=None)
        batch = assembler.assemble(order.take(0, start, stop), epoch=None)
        embeddings = look_up(self.layout, self.tables, batch)
        with torch.no_grad():
            logits = self.arch(embeddings, batch).logits
        names = ranker_inputs(embeddings, batch) if blocks == "one" else {}
        return names, torch.sigmoid(logits)[: stop - start]


@pytest.mark.parametrize("preset", PRESETS)
def test_one_block_scores_like_the_blocks_of_training(
    tiny_dataset: Path, tmp_path: Path, preset: str
) -> None:
    setting = Setting(tiny_dataset, preset, tmp_path)
    for start, stop in ((0, 1), (0, 64), (100, 108)):
        _, trained = setting.inputs(start, stop, blocks="by_length")
        _, served = setting.inputs(start, stop, blocks="one")
        torch.testing.assert_close(served, trained, rtol=0, atol=2e-6)
    assert trained.std() > 0


# Their graph depends on the length of the histories: DIEN makes a step for each behaviour, the
# others take the best k of them.
NOT_EXPORTED = ("dien", "qin", "sim_soft")


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in NOT_EXPORTED])
def test_one_program_serves_requests_of_all_sizes(
    tiny_dataset: Path, tmp_path: Path, preset: str
) -> None:
    setting = Setting(tiny_dataset, preset, tmp_path)
    example, _ = setting.inputs(0, 24, blocks="one")
    program = torch.export.export(
        RankerProgram(setting.arch, list(example)),
        tuple(example.values()),
        dynamic_shapes=(tuple(free_sizes(setting.layout, list(example), setting.max_length)),),
    ).module()
    for start, stop in ((0, 1), (5, 8), (0, 200)):
        inputs, expected = setting.inputs(start, stop, blocks="one")
        found = program(*inputs.values())[: stop - start]
        np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=2e-6)
