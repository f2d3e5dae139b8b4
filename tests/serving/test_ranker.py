"""Every module's dense part is one program for requests of all sizes, and scores as in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._inductor import aoti_load_package

from cdp_torchrec.config import load_config
from cdp_torchrec.data.history.sequence_index import Blocks
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.serving.compile import compile_ranker
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.lookup import look_up
from cdp_torchrec.serving.ranker_export import RankerProgram, free_sizes
from cdp_torchrec.serving.ranker_inputs import ranker_inputs
from cdp_torchrec.serving.table_export import write_tables
from cdp_torchrec.serving.tables import EmbeddingTables
from tests.paths import CONFIGS
from tests.whole_matrix import KINDS, WHOLE_MATRIX, only_whole

PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))
# Most histories are longer than what these keep, some are shorter.
LONGER_THAN_KEPT = [
    ("dien", "model.interest.max_length=10"),
    ("diffumin", "model.interest.num_kept=5", "model.interest.num_inference_steps=2"),
    ("eta", "model.interest.num_kept=10"),
    ("longer", "model.interest.num_queries=4", "model.interest.group_size=3"),
    ("marm", "model.interest.max_length=5", "model.interest.num_layers=3"),
    ("qin", "model.interest.num_query_kept=20", "model.interest.num_kept=4"),
    ("sim_hard", "model.interest.num_kept=5", "model.interest.short_length=9"),
    ("sim_soft", "model.interest.num_kept=10"),
    ("twin_v2", "model.interest.num_kept=5"),
    ("twin", "model.interest.num_kept=10", "model.interest.kept_by=each_head"),
]
BY_DAYPART = [(preset, "data.history.dayparts=3") for preset in ("din", "pooled", "twin_v2")]
SETS = [("cdp", "model.num_embedding_sets=2")]
VARIANTS = [*[(preset,) for preset in PRESETS], *LONGER_THAN_KEPT, *BY_DAYPART, *SETS]
EXPORTED = VARIANTS
if not WHOLE_MATRIX:  # one of each kind, of those that keep a part that one
    keep_a_part = {preset for preset, *_ in LONGER_THAN_KEPT}
    EXPORTED = [*[(p,) for p in KINDS if p not in keep_a_part], *LONGER_THAN_KEPT, *SETS]


class Setting:
    """A preset with random parameters over the small dataset."""

    def __init__(self, dataset: Path, preset: str, scratch: Path, *settings: str) -> None:
        torch.manual_seed(0)
        config = load_config(
            ExportedConfig,
            [
                str(CONFIGS / "interest" / f"{preset}.toml"),
                f"data.dir={dataset}",
                "model.embedding_dim=8",
                "data.history.count_segments=[1, 2]",
                f"model.interaction.history_counts={str(preset != 'none').lower()}",
                *settings,
            ],
        )
        self.reader = DatasetReader(config.data)
        self.layout = self.reader.layout(
            config.model.interest.history.served,
            history_counts=config.model.interaction.history_counts,
        )
        self.max_length = config.data.history.max_length
        rows = {entity: table.num_embeddings for entity, table in self.layout.tables.items()}
        values = {entity: torch.randn(count, 8) * 0.3 for entity, count in rows.items()}
        write_tables(scratch / "tables", values, owners={}, storage="float32", num_shards=1)
        self.tables = EmbeddingTables.open(
            scratch / "tables", dict.fromkeys(rows), embedding_dim=8, storage="float32"
        )
        self.arch = build_ranking_arch(self.layout, config.model).eval()
        with torch.no_grad():
            for parameter in self.arch.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))

    def inputs(
        self, start: int, stop: int, *, blocks: Blocks, with_histories: bool = True
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the program (if in one block), and probabilities of some impressions."""
        assembler = self.reader.inputs(
            self.layout, batch_size=stop - start + 2, seed=0, blocks=blocks
        )
        impressions = self.reader.impressions("test").take(0, start, stop)
        if not with_histories:
            impressions.request["timestamp"] = np.zeros_like(impressions.request["timestamp"])
        inputs = assembler.assemble(impressions, epoch=None)
        embeddings = look_up(self.layout, self.tables, inputs)
        with torch.no_grad():
            logits = self.arch(embeddings, inputs.dense).logits
        names = ranker_inputs(embeddings, inputs.dense) if blocks == "one" else {}
        return names, torch.sigmoid(logits)[: stop - start]

    def ranker(self) -> tuple[RankerProgram, tuple[Tensor, ...], tuple[Any, ...]]:
        """The program, an example of its arguments, and which of their sizes are free."""
        example, _ = self.inputs(0, 24, blocks="one")
        names = list(example)
        sizes = tuple(free_sizes(self.layout, names, self.max_length))
        return RankerProgram(self.arch, names), tuple(example.values()), (sizes,)

    def check(self, program: Callable[..., Tensor]) -> None:
        """Whether it scores requests of all sizes like the blocks of training."""
        for start, stop, with_histories in ((0, 1, True), (5, 8, False), (0, 200, True)):
            inputs, _ = self.inputs(start, stop, blocks="one", with_histories=with_histories)
            _, expected = self.inputs(
                start, stop, blocks="by_length", with_histories=with_histories
            )
            found = program(*inputs.values())[: stop - start]
            np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_one_block_scores_like_the_blocks_of_training(
    tiny_dataset: Path, tmp_path: Path, variant: tuple[str, ...]
) -> None:
    preset, *settings = variant
    setting = Setting(tiny_dataset, preset, tmp_path, *settings)
    for start, stop in ((0, 1), (0, 64), (100, 108)):
        _, trained = setting.inputs(start, stop, blocks="by_length")
        _, served = setting.inputs(start, stop, blocks="one")
        torch.testing.assert_close(served, trained, rtol=0, atol=1e-6)
    assert trained.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", EXPORTED, ids=" ".join)
def test_one_program_serves_requests_of_all_sizes(
    tiny_dataset: Path, tmp_path: Path, variant: tuple[str, ...]
) -> None:
    preset, *settings = variant
    setting = Setting(tiny_dataset, preset, tmp_path, *settings)
    ranker, example, sizes = setting.ranker()
    program = torch.export.export(ranker, example, dynamic_shapes=sizes)
    setting.check(program.module())


@pytest.mark.slow
@only_whole
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_the_compiled_program_scores_like_the_blocks_of_training(
    tiny_dataset: Path, tmp_path: Path, variant: tuple[str, ...]
) -> None:
    """With the kernels that an export generates: other tests of exports go without."""
    preset, *settings = variant
    setting = Setting(tiny_dataset, preset, tmp_path, *settings)
    ranker, example, sizes = setting.ranker()
    package = tmp_path / "ranker.pt2"
    compile_ranker(ranker, example, dynamic_shapes=sizes, package=package)
    setting.check(aoti_load_package(str(package)))
