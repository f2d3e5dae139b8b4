"""Tables whose ids win and lose their rows, on one and two ranks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import JaggedTensor

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.managed_collision import assign_counted_rows
from cdp_torchrec.experiment import (
    Experiment,
    build_experiment,
    evaluate_test,
    train,
    train_experiment,
)
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.model.managed_collision import BucketedCollisionModule
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.runs import losses

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CPU = torch.device("cpu")
# Users are pooled, items are read by the sequences of DIN. Intervals of 2 do not divide the 3 steps
# between checkpoints. Requests of 8 candidates do not divide the 126 impressions of a rank.
SETTINGS = """
[data.history]
max_length = 40
[data.vocabulary.user.managed_collision]
zch_size = 64
buckets = 4
eviction_interval = 2
[data.vocabulary.item.managed_collision]
zch_size = 48
buckets = 4
eviction_interval = 2
[model]
embedding_dim = 8
embedding_init_std = 0.1
[sharding]
small_table_rows = 20
[optimizer.sparse]
kind = "rowwise_adagrad"
lr = 0.05
[trainer]
global_batch_size = 252
max_steps = 6
log_every_steps = 1
validate_every_steps = 3
"""


def config(dataset: Path, run_dir: Path, *overrides: str) -> ExperimentConfig:
    data = [f"data.dir={dataset}", f"run.dir={run_dir}"]
    layers = [str(CONFIGS / "interest" / "din.toml"), str(run_dir.parent / "settings.toml")]
    return load_config(ExperimentConfig, [*layers, *data, *overrides])


def copy_until_step_3(source: Path, target: Path) -> None:
    shutil.copytree(source / "checkpoints" / "step-00000003", target / "checkpoints/step-00000003")


def local(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Copies of this rank's tensors."""
    own = {}
    for name, value in model.state_dict().items():
        shards = [value]
        if isinstance(value, ShardedTensor):
            shards = [shard.tensor for shard in value.local_shards()]
        own |= {f"{name}.{i}": shard.clone() for i, shard in enumerate(shards)}
    return own


def maps(model: DistributedModelParallel) -> Iterator[BucketedCollisionModule]:
    return (m for m in model.modules() if isinstance(m, BucketedCollisionModule))


def fresh_rows(experiment: Experiment) -> dict[str, bool]:
    """What becomes of rows with a past when some of them change owners."""
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    name, table = next(
        (n, v) for n, v in model.state_dict().items() if n.endswith(".t_user.weight")
    )
    weights = table.local_shards()[0].tensor
    initial = weights.clone()
    state = [
        moment.local_shards()[0].tensor
        for key, moments in optimizer.state_dict()["state"].items()
        if key.endswith(name)
        for moment in moments.values()
    ]
    for past in (weights, *state):
        past.fill_(7)
    module = next(m for m in maps(model) if m.output_size() == len(weights))
    # Of 4 buckets with 16 rows each, a rank holds two, with the ids of two remainders.
    first_bucket = 2 * dist.get_rank()
    ids = torch.tensor([first_bucket, first_bucket + 4, first_bucket + 1])
    users = {"user": JaggedTensor(ids, lengths=torch.ones_like(ids))}
    module.profile(users)
    assign_counted_rows(model)
    changed = torch.zeros(len(weights), dtype=torch.bool)
    changed[module.remap(users)["user"].values() - 16 * first_bucket] = True
    return {
        "three rows change owners": int(changed.sum()) == 3,
        "weights of the new owner": torch.equal(weights[changed], initial[changed]),
        "weights of others": bool((weights[~changed] == 7).all()),
        "has state": bool(state),
        "state of the new owner": all(bool((s[changed] == 0).all()) for s in state),
        "state of others": all(bool((s[~changed] == 7).all()) for s in state),
    }


def pipelined_modules(experiment: Experiment) -> set[str]:
    """What exchanges the ids of the next batch while the model works on this one."""
    parallelized = experiment.parallelized
    pipeline = TrainPipelineSparseDist(parallelized.model, parallelized.optimizer, CPU)
    pipeline.progress(iter([experiment.data.train[0], experiment.data.train[256]]))
    return {type(module).__name__ for module in pipeline._pipelined_modules}


def on_two_ranks(dataset: Path, folder: Path) -> dict[str, Any]:
    """Train, resume, evaluate, evict by hand, and ask for what cannot be."""
    trained = train_experiment(config(dataset, folder / "two"), CPU, quiet=True)
    model = trained.experiment.parallelized.model
    before = local(model)
    evaluate_test(trained.experiment)
    after = local(model)
    found: dict[str, Any] = {
        "evaluation_changed": [n for n in before if not torch.equal(before[n], after[n])],
        "open_slots": [int(m.open_slots()) for m in maps(model)],
    }
    if dist.get_rank() == 0:
        for name in ("resumed", "one"):
            copy_until_step_3(folder / "two", folder / name)
    dist.barrier()
    train(config(dataset, folder / "resumed", "run.resume=true"), CPU)
    train(config(dataset, folder / "plan", f"sharding.plan={folder}/two/plan.json"), CPU)
    for kind in ("adam", "rowwise_adagrad"):
        settings = config(dataset, folder / "fresh", f"optimizer.sparse.kind={kind}")
        found[kind] = fresh_rows(build_experiment(settings, CPU))
    experiment = build_experiment(config(dataset, folder / "fresh"), CPU)
    found["pipelined"] = pipelined_modules(experiment)
    mistakes = {
        "strategy": ["sharding.strategy=table_wise"],
        "types": ["sharding.tables.user.types=['data_parallel']"],
        "buckets": [
            "data.vocabulary.user.managed_collision.buckets=3",
            "data.vocabulary.user.managed_collision.zch_size=63",
        ],
    }
    for name, overrides in mistakes.items():
        try:
            build_experiment(config(dataset, folder / "mistake", *overrides), CPU)
        except ConfigError as error:
            found[name] = str(error)
    return found


def on_one_rank(dataset: Path, folder: Path) -> None:
    train(config(dataset, folder / "alone"), CPU)
    train(config(dataset, folder / "one", "run.resume=true"), CPU)


@pytest.fixture(scope="module")
def runs(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("managed")
    (folder / "settings.toml").write_text(SETTINGS)
    found = run_ranks(2, on_two_ranks, tiny_dataset, folder)
    run_ranks(1, on_one_rank, tiny_dataset, folder)
    return folder, found[0]


def test_losses_do_not_depend_on_the_number_of_ranks(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, found = runs
    assert losses(folder / "two") == pytest.approx(losses(folder / "alone"), abs=1e-6)
    assert found["open_slots"] == [0, 0], "more ids than rows: some were evicted"


def test_a_resumed_run_equals_an_uninterrupted_one(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = runs
    assert losses(folder / "resumed") == losses(folder / "two")[3:]


def test_a_checkpoint_continues_on_another_number_of_ranks(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = runs
    assert losses(folder / "one") == pytest.approx(losses(folder / "two")[3:], abs=1e-6)


def test_ids_are_exchanged_ahead_for_all_collections(runs: tuple[Path, dict[str, Any]]) -> None:
    assert runs[1]["pipelined"] == {
        "ShardedEmbeddingBagCollection",
        "ShardedEmbeddingCollection",
        "ShardedManagedCollisionEmbeddingBagCollection",
        "ShardedManagedCollisionEmbeddingCollection",
    }


def test_the_plan_of_a_run_is_a_plan_file(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = runs
    assert losses(folder / "plan") == losses(folder / "two")


def test_evaluation_leaves_rows_and_their_owners_alone(runs: tuple[Path, dict[str, Any]]) -> None:
    assert runs[1]["evaluation_changed"] == []


@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_a_new_owner_finds_its_row_as_it_was_at_first(
    runs: tuple[Path, dict[str, Any]], kind: str
) -> None:
    assert all(runs[1][kind].values()), runs[1][kind]


def test_what_managed_collision_cannot_do_is_refused_before_training(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    _, found = runs
    assert "sharding.tables.user: table_wise and data.vocabulary.user" in found["strategy"]
    assert "sharding.tables.item: table_wise and data.vocabulary.item" in found["strategy"]
    assert "data_parallel and data.vocabulary.user.managed_collision" in found["types"]
    assert "buckets = 3: expected a multiple of the 2 ranks" in found["buckets"]


def test_fbgemm_still_cannot_reset_rows_on_a_cpu() -> None:
    """Why rows are reset by our own code; TorchRec calls this operator for each eviction."""
    nothing = torch.zeros(0)
    with pytest.raises(NotImplementedError, match="fbgemm::reset_weight_momentum"):
        torch.ops.fbgemm.reset_weight_momentum(*[nothing] * 16, 0)
