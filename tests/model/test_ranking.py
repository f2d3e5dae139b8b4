"""The ranking model: every parameter learns, scores depend on nothing but their impression."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history.lookup import HistoryCounts
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, build_layout
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.request_files import RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.model.impression_features import Columns
from cdp_torchrec.model.ranking import OverArch
from cdp_torchrec.model.train_task import TrainLoss
from tests.gradients import idle_parameters, in_float64
from tests.paths import CONFIGS, GOLDEN

PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))
BATCH_SIZE = 64


class PlainModel(nn.Module):
    """The dense part over nn.EmbeddingBag tables: no TorchRec sharding."""

    def __init__(self, layout: FeatureLayout, config: ExperimentConfig) -> None:
        super().__init__()
        self.layout = layout
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(table.num_embeddings, config.model.embedding_dim, mode="sum")
                for name, table in layout.tables.items()
            }
        )
        self.ranking_arch = build_ranking_arch(layout, config.model)
        self.loss = TrainLoss(self.ranking_arch.sets[0].interest.loss_weights)

    def table(self, entity: str) -> Tensor:
        return self.tables.get_parameter(f"{entity}.weight")

    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        embeddings: dict[str, Tensor] = {}
        for feature in self.layout.pooled_features:
            bag = batch.sparse[feature.key]
            embeddings[feature.key] = self.tables[feature.table](bag.values(), bag.offsets()[:-1])
        for feature in self.layout.sequence_features:
            assert batch.sequence is not None and not feature.is_bag
            table = self.tables.get_parameter(f"{feature.table}.weight")
            embeddings[feature.key] = table[batch.sequence[feature.key].values()]
        return embeddings

    def output(self, batch: Batch):
        return self.ranking_arch(self.embeddings(batch), batch)

    def forward(self, batch: Batch):
        return self.loss(self.output(batch), batch.labels, batch.weights)


class Setting:
    """A dataset, a model and batches for one preset."""

    def __init__(self, dataset: Path, preset: str, *overrides: str) -> None:
        schema = load_schema(dataset)
        self.config = load_config(
            ExperimentConfig,
            [
                str(CONFIGS / "interest" / f"{preset}.toml"),
                f"data.dir={dataset}",
                "model.embedding_dim=8",
                f"model.interaction.history_counts={str(preset != 'none').lower()}",
                *overrides,
            ],
        )
        self.layout = build_layout(
            dataset,
            schema,
            vocabulary={},
            history=self.config.model.interest.history,
            counts=HistoryCounts((1, 3)) if self.config.model.interaction.history_counts else None,
            dayparts=self.config.data.history.dayparts,
        )
        self.store = HistoryStore(
            dataset / "history",
            schema.history,
            num_categories=schema.entities["category"].num_ids,
        )
        self.order = ImpressionOrder(RequestFiles(dataset, schema, "train"), seed=0)
        torch.manual_seed(0)
        self.model = PlainModel(self.layout, self.config)

    def batch(self, start: int, stop: int, *, size: int = BATCH_SIZE) -> Batch:
        assembler = BatchAssembler(
            InputAssembler(
                self.layout,
                self.store,
                batch_size=size,
                max_history_length=100,
                seed=0,
            )
        )
        # Whatever training does by and by is in full course.
        return assembler.assemble(self.order.take(0, start, stop), epoch=0, progress=10.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_every_parameter(tiny_dataset: Path, preset: str) -> None:
    setting = Setting(tiny_dataset, preset, "data.history.dayparts=3")
    model = setting.model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # Modules may ignore the action of a behaviour, with what else the log knows of it, and few
    # users of this log have no history.
    may_be_idle = re.compile(r"tables\.action\.weight|.*behaviour_attributes\..*|.*null.*")
    idle: set[str] = {n for n, _ in model.named_parameters() if not may_be_idle.fullmatch(n)}
    # Zero-initialised gates open after the first steps.
    for step in range(4):
        loss, _ = model(in_float64(setting.batch(64 * step, 64 * step + 64)))
        idle &= set(idle_parameters(model, loss))
        optimizer.step()
    assert not idle


@pytest.mark.parametrize("preset", PRESETS)
def test_a_score_depends_on_its_impression_alone(tiny_dataset: Path, preset: str) -> None:
    setting = Setting(tiny_dataset, preset)
    model = setting.model.eval()
    with torch.no_grad():
        whole = model.output(setting.batch(0, 64)).logits
        padded = model.output(setting.batch(16, 40)).logits[:24]
        large = model.output(setting.batch(0, 64, size=100)).logits[:64]
        again = model.output(setting.batch(0, 64)).logits
    torch.testing.assert_close(padded, whole[16:40], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(large, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(again, whole)


def test_losses_beside_a_stranger_do_not_depend_on_the_number_of_ranks(tiny_dataset: Path) -> None:
    """Two ranks split a request between them. SASRec's negatives are other requests of the batch,
    so its losses do depend on it."""
    names = {
        "cadirec": {"next_item_loss", "contrastive_loss", "rounding_loss"},
        "diff4rec": {"denoise_loss", "reconstruction_loss", "kl_loss", "objective_loss"},
        "sasrec": {"next_item_loss"},
    }
    for preset in names:
        settings = ["model.interest.next_item_loss_weight=0.1"] * (preset == "sasrec")
        setting = Setting(tiny_dataset, preset, *settings)
        with torch.no_grad():
            one = setting.model.output(setting.batch(0, 60, size=60)).interest.losses
            two = [
                setting.model.output(setting.batch(start, start + 30, size=30)).interest.losses
                for start in (0, 30)
            ]
        assert set(one) == names[preset]
        for name, losses in one.items():
            together = torch.cat([of_rank[name] for of_rank in two])
            assert losses.any()
            is_equal = torch.allclose(losses, together, rtol=1e-5, atol=1e-6)
            assert is_equal == (preset != "sasrec")


def test_padding_adds_nothing_to_the_loss(tiny_dataset: Path) -> None:
    setting = Setting(tiny_dataset, "cdp_timestep")
    exact, _ = setting.model(setting.batch(0, 40, size=40))
    padded, output = setting.model(setting.batch(0, 40, size=64))
    # The sum is divided by the places of the batch, the same number on every rank.
    torch.testing.assert_close(padded * 64, exact * 40)
    assert set(output.losses) == {"loss", "bce_loss", "noise_loss"}


def test_excluded_features_do_not_reach_the_tower(tiny_dataset: Path) -> None:
    setting = Setting(tiny_dataset, "none", 'model.interaction.exclude=["item_id","log_price"]')
    model, batch = setting.model.eval(), setting.batch(0, 64)
    with torch.no_grad():
        before = model.output(batch).logits
        model.table("item").mul_(-3)
        column = [f.name for f in setting.layout.numbers].index("log_price")
        batch.numbers[:, column] += 1
        assert torch.equal(model.output(batch).logits, before)
        model.table("position").mul_(-3)
        assert not torch.equal(model.output(batch).logits, before)


@pytest.mark.parametrize("places", [[], [1], [1, 2, 3], [0, 2], [3, 1]])
def test_columns_are_picked_by_what_moves_with_the_module(places: list[int]) -> None:
    """A list would be copied to a GPU in every step."""
    columns = Columns(places)
    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(columns(x), x[:, places])
    assert not columns.state_dict()
    assert columns.to("meta").places.device.type == "meta"


def first_losses(dataset: Path, preset: str) -> list[float]:
    """Losses of three steps in float64: Adam makes whole steps of gradients that are rounding."""
    setting = Setting(dataset, preset)
    model = setting.model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss, _ = model(in_float64(setting.batch(64 * step, 64 * step + 64)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("click_rate", [0.001, 0.04, 0.5, 0.999])
def test_the_output_starts_at_the_click_rate(click_rate: float) -> None:
    arch = OverArch(4, (8, 3))
    arch.start_at(click_rate)
    nn.init.zeros_(arch.output.weight)
    expected = torch.full((5,), click_rate)
    torch.testing.assert_close(torch.sigmoid(arch(torch.randn(5, 4))), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_first_losses_are_the_golden_ones(tiny_dataset: Path, preset: str) -> None:
    """Losses of three steps, replaced by what `first_losses` gives when a change is meant."""
    golden = json.loads((GOLDEN / "losses.json").read_text())
    assert first_losses(tiny_dataset, preset) == pytest.approx(golden[preset], abs=2e-6)


SETS = "model.num_embedding_sets=2"
COLUMNS = slice(0, 4), slice(4, 8)


@pytest.mark.parametrize("preset", ["cdp", "din", "sim_soft"])
def test_sets_of_embeddings_are_models_of_their_own(tiny_dataset: Path, preset: str) -> None:
    """The logit is the mean of theirs, the losses are the means of theirs, and a set learns from
    its own columns alone."""
    setting = Setting(tiny_dataset, preset, SETS)
    model, batch = setting.model, setting.batch(0, 64)
    sets = model.ranking_arch.sets
    assert len(sets) == 2
    embeddings = model.embeddings(batch)
    outputs = [
        arch(
            {key: values[:, 4 * place : 4 * place + 4] for key, values in embeddings.items()}, batch
        )
        for place, arch in enumerate(sets)
    ]
    found = model.output(batch)
    assert not torch.equal(outputs[0].logits, outputs[1].logits)
    torch.testing.assert_close(found.logits, (outputs[0].logits + outputs[1].logits) / 2)
    alone = [model.loss(output, batch.labels, batch.weights)[1].losses for output in outputs]
    total, together = model.loss(found, batch.labels, batch.weights)
    assert set(together.losses) == set(alone[0]) >= {"loss", "bce_loss"}
    for name, loss in together.losses.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2)
    gradients = torch.autograd.grad(total, [*sets[0].parameters()], retain_graph=True)
    own, _ = model.loss(outputs[0], batch.labels, batch.weights)
    expected = torch.autograd.grad(own / 2, [*sets[0].parameters()])
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_set_learns(tiny_dataset: Path, preset: str) -> None:
    """What the first loss does not reach in one set, such as what is behind a gate that starts
    closed, it does not reach in the other."""
    setting = Setting(tiny_dataset, preset, SETS)
    model = setting.model.double()
    loss, _ = model(in_float64(setting.batch(0, 64)))
    idle = {name.removeprefix("ranking_arch.") for name in idle_parameters(model, loss)}
    first, second = (
        {n.removeprefix(f"_archs.{place}.") for n in idle if n.startswith(f"_archs.{place}.")}
        for place in range(2)
    )
    assert first == second
    item = model.table("item").grad
    assert item is not None and all(item[:, part].any() for part in COLUMNS)


def test_sets_that_do_not_divide_the_columns_are_an_error(tiny_dataset: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"embedding_dim = 8 must be a multiple of num_embedd.* = 3"
    ):
        Setting(tiny_dataset, "pooled", "model.num_embedding_sets=3")


def test_a_width_that_a_set_does_not_have_is_no_width_of_the_tables(tiny_dataset: Path) -> None:
    """Fails where 4 is said to be model.embedding_dim, which is 8."""
    with pytest.raises(ConfigError, match=r"num_heads = 8: .*embedding_dim = 8, each .* has 4\)"):
        Setting(tiny_dataset, "sasrec", SETS, "model.interest.num_heads=8")


@pytest.mark.parametrize("preset", PRESETS)
def test_bfloat16_changes_scores_little(tiny_dataset: Path, preset: str) -> None:
    exact = Setting(tiny_dataset, preset)
    mixed = Setting(tiny_dataset, preset, "model.precision=bfloat16")
    mixed.model.load_state_dict(exact.model.state_dict())
    batch = exact.batch(0, 64)
    loss, output = exact.model(batch)
    mixed_loss, mixed_output = mixed.model(batch)
    assert mixed_output.logits.dtype == torch.float32
    assert not torch.equal(mixed_output.logits, output.logits)
    torch.testing.assert_close(mixed_loss, loss, rtol=0.02, atol=0.02)
    mixed_loss.backward()


def test_a_batch_moves_and_keeps_its_fields(tiny_dataset: Path) -> None:
    batch = Setting(tiny_dataset, "cdp_timestep").batch(0, 64)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    for field in fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(getattr(moved, field.name), value)
    assert replace(batch, key=batch.key + 1).key.tolist() != batch.key.tolist()


@pytest.mark.parametrize(
    "setting", ["model.over_arch_layer_sizes=[]", "model.interaction.deep_layer_sizes=[]"]
)
def test_a_tower_without_layers_is_refused_by_its_key(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.removesuffix("=[]").replace(".", r"\.")):
        load_config(ExperimentConfig, ["data.dir=x", "model.interest.kind=pooled", setting])


def test_a_rank_without_cross_layers_is_refused_as_idle() -> None:
    line = ["data.dir=x", "model.interest.kind=pooled", "model.interaction.num_cross_layers=0"]
    load_config(ExperimentConfig, line)
    with pytest.raises(ConfigError, match=r"cross_rank = 64: has no effect with .*_layers = 0"):
        load_config(ExperimentConfig, [*line, "model.interaction.cross_rank=64"])


def test_a_model_names_what_its_interest_module_did_not_declare(tiny_dataset: Path) -> None:
    """Fails where a loss that is declared and never computed is left out in silence."""
    setting = Setting(tiny_dataset, "pooled")
    setting.model.ranking_arch.sets[0].interest.loss_weights = {"own": 0.1}
    with pytest.raises(ValueError, match=r"PooledInterest: losses in training: .*own.* found none"):
        setting.model(setting.batch(0, 64))
