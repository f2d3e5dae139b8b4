"""A student learns from the probabilities that its teacher has for the training split."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdp_torchrec.commands import evaluate
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.daily.config import DailyExperimentConfig
from cdp_torchrec.data.config import DataConfig, SoftLabelsConfig
from cdp_torchrec.data.dataset import open_dataset
from cdp_torchrec.data.loader import Share
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig, check_early
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.stored_run import open_run
from tests.distributed.commands import run_command
from tests.paths import CONFIGS
from tests.runs import losses

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of clicks and probabilities."""
PREDICTED = Path("evaluations", "train", "predictions.parquet")


def labels_of(dataset: Path) -> np.ndarray:
    """Clicks of the training split in its order."""
    files = sorted((dataset / "train").glob("*.parquet"))
    return np.concatenate(
        [pq.read_table(f)["label"].combine_chunks().flatten().to_numpy() for f in files]
    )


def write(path: Path, label: np.ndarray, probability: np.ndarray, *, row_group: int = 97) -> Path:
    pq.write_table(
        pa.table({"label": label, "probability": probability}), path, row_group_size=row_group
    )
    return path


@pytest.fixture(scope="module")
def clicks(tiny_dataset: Path) -> np.ndarray:
    return labels_of(tiny_dataset)


@pytest.fixture
def teach(tmp_path: Path, clicks: np.ndarray) -> Callable[..., Path]:
    """Write a teacher's file, as it is or with a mistake in it."""

    def teach(change: Change | None = None) -> Path:
        probability = np.random.default_rng(0).random(len(clicks), dtype=np.float32)
        columns = clicks.astype(np.int8), probability
        return write(tmp_path / "soft.parquet", *(change(*columns) if change else columns))

    return teach


def order(dataset: Path, soft: SoftLabelsConfig | None, **wanted: Any) -> ImpressionOrder:
    config = DataConfig(dir=dataset, soft_labels=soft, shuffled_together=300)
    return DatasetReader(config).impressions("train", softened=True, **wanted)


def read(found: ImpressionOrder) -> tuple[np.ndarray, np.ndarray]:
    """Identity and label of each impression of an epoch."""
    taken = found.take(0, 0, found.num_impressions)
    request = taken.request["request_id"][taken.request_index]
    return np.stack([request, taken.candidate["item_id"]], axis=1), taken.candidate["label"]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_each_impression_gets_its_own_label_wherever_the_shuffle_puts_it(
    tiny_dataset: Path, teach: Callable[..., Path], clicks: np.ndarray, weight: float
) -> None:
    """Row groups of the teacher's file and of the requests end at different places."""
    soft = SoftLabelsConfig(file=teach(), weight=weight)
    probability = pq.read_table(soft.file)["probability"].to_numpy()
    known, labels = read(order(tiny_dataset, None))
    assert np.array_equal(labels, clicks)
    shuffled, found = read(order(tiny_dataset, soft, seed=5, stop=777))
    wanted = (1 - weight) * clicks + weight * probability
    place = {tuple(key): i for i, key in enumerate(known)}  # a request lists an item once
    assert len(place) == len(known)
    rows = [place[tuple(key)] for key in shuffled]
    assert rows != sorted(rows)
    np.testing.assert_allclose(found, wanted[rows], atol=1e-6)


def test_held_out_and_test_requests_keep_their_clicks(
    tiny_dataset: Path, teach: Callable[..., Path]
) -> None:
    layers = [str(CONFIGS / "interest" / "pooled.toml"), f"data.dir={tiny_dataset}"]
    config = load_config(ExperimentConfig, [*layers, f"data.soft_labels.file={teach()}"])
    data = open_dataset(
        config.data,
        history=config.model.interest.history,
        history_counts=False,
        global_batch_size=256,
        share=Share(0, 1),
        seed=0,
    )
    assert data.validation is not None
    for batches in (data.validation, data.test):
        assert set(batches[0].labels.tolist()) == {0.0, 1.0}
    assert ((data.train[0].labels > 0) & (data.train[0].labels < 1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda y, p: (1 - y, p),
            r"soft\.parquet: row \d+: label [01], but impression \d+ of the training split has",
            id="other labels",
        ),
        pytest.param(
            lambda y, p: (y, np.where(np.arange(len(p)) == 7, np.float32(1.5), p)),
            r"row 7: probability 1\.5, allowed: 0 to 1",
            id="no probability",
        ),
        pytest.param(
            lambda y, p: (y, np.where(np.arange(len(p)) == 7, np.float32("nan"), p)),
            r"row 7: probability nan, allowed: 0 to 1",
            id="no number",
        ),
    ],
)
def test_a_file_of_other_impressions_is_an_error(
    tiny_dataset: Path, teach: Callable[..., Path], change: Change, message: str
) -> None:
    found = order(tiny_dataset, SoftLabelsConfig(file=teach(change)))
    with pytest.raises(DatasetError, match=message):
        read(found)


def configured(
    dataset: Path, run_dir: Path, *settings: str, max_steps: int = 4
) -> ExperimentConfig:
    common = [f"data.dir={dataset}", f"run.dir={run_dir}", "trainer.global_batch_size=256"]
    common += [f"trainer.max_steps={max_steps}", "trainer.log_every_steps=1"]
    layers = [str(CONFIGS / "interest" / "pooled.toml"), *common, *settings]
    return load_config(ExperimentConfig, layers)


def test_what_the_footer_shows_is_said_before_torch_is_imported(
    tiny_dataset: Path, tmp_path: Path, teach: Callable[..., Path], clicks: np.ndarray
) -> None:
    short = teach(lambda y, p: (y[:-1], p[:-1]))
    renamed = tmp_path / "renamed.parquet"
    pq.write_table(pa.table({"label": clicks, "score": clicks}), renamed)
    (tmp_path / "text.parquet").write_text("probability\n")
    n = len(clicks)
    for name, message in (
        ("absent.parquet", "cannot be read: No such file or directory"),
        (short.name, f"has {n - 1} rows, but the training split has {n} impressions"),
        (renamed.name, "has no column probability; it has ['label', 'score']"),
        ("text.parquet", "cannot be read: "),
    ):
        path = tmp_path / name
        config = configured(tiny_dataset, tmp_path / "run", f"data.soft_labels.file={path}")
        start = f"data.soft_labels.file = '{path}': {message}"
        with pytest.raises(ConfigError, match=re.escape(start) + ".* --split train --predictions"):
            check_early(config)


def test_days_have_no_soft_labels(tiny_dataset: Path, tmp_path: Path) -> None:
    settings = [f"data.dir={tiny_dataset}", f"run.dir={tmp_path}", "data.soft_labels.file=x"]
    layer = str(CONFIGS / "interest" / "pooled.toml")
    with pytest.raises(ConfigError, match=r"data\.soft_labels = .*: it is of one training split"):
        load_config(DailyExperimentConfig, [layer, *settings])


@pytest.mark.usefixtures("one_rank")
def test_a_student_of_an_all_knowing_teacher_is_trained_on_its_probabilities(
    tiny_dataset: Path, tmp_path: Path, clicks: np.ndarray
) -> None:
    """With weight 1 and the clicks as probabilities it is the training without a teacher."""
    cpu = torch.device("cpu")
    own = write(tmp_path / "own.parquet", clicks, clicks.astype(np.float32))
    flat = write(tmp_path / "flat.parquet", clicks, np.full(len(clicks), 0.5, dtype=np.float32))
    for name, settings in (
        ("without", []),
        ("own", [f"data.soft_labels.file={own}"]),
        ("flat", [f"data.soft_labels.file={flat}"]),
    ):
        train_experiment(configured(tiny_dataset, tmp_path / name, *settings), cpu, quiet=True)
    assert losses(tmp_path / "own") == losses(tmp_path / "without")
    assert losses(tmp_path / "flat") != losses(tmp_path / "without")
    # What goes on needs the same labels, wherever they lie.
    resume = (tiny_dataset, tmp_path / "flat", "run.resume=true")
    other = configured(*resume, f"data.soft_labels.file={own}", max_steps=5)
    with pytest.raises(CheckpointError, match="other requests, another history or other soft"):
        train_experiment(other, cpu, quiet=True)
    moved = flat.rename(tmp_path / "moved.parquet")
    same = configured(*resume, f"data.soft_labels.file={moved}", max_steps=5)
    train_experiment(same, cpu, quiet=True)
    assert len(losses(tmp_path / "flat")) == 5
    # Nothing but a training reads them.
    moved.unlink()
    run = open_run(tmp_path / "flat", [], ExperimentConfig)
    assert run.config.data.soft_labels is None and not run.changes
    run.load(cpu)
    with pytest.raises(ConfigError, match="only its training reads it"):
        open_run(tmp_path / "flat", ["data.soft_labels.file=x"], ExperimentConfig)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_teacher_scores_the_training_split_in_its_order_for_a_student(
    tiny_dataset: Path, tmp_path: Path, clicks: np.ndarray
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    common = [CONFIGS / "interest" / "pooled.toml", f"data.dir={tiny_dataset}"]
    common += ["trainer.global_batch_size=256", "trainer.max_steps=4", "trainer.log_every_steps=1"]
    assert run_command("train", *common, f"run.dir={teacher}").codes == [0]
    own = (teacher / "evaluation.json").read_bytes()
    ended = run_command("evaluate", teacher, "--split", "train", "--predictions", world_size=2)
    assert ended.codes == [0, 0], ended.said
    assert "Of the training split" in ended.said
    assert f"{len(clicks):,} impressions" in ended.said
    assert (teacher / "evaluation.json").read_bytes() == own
    table = pq.read_table(teacher / PREDICTED)
    assert np.array_equal(table["label"].to_numpy(), clicks)
    taught = f"data.soft_labels.file={teacher / PREDICTED}"
    assert run_command("train", *common, f"run.dir={student}", taught).codes == [0]
    # The same weights and the same batch, other labels.
    assert losses(student)[0] != losses(teacher)[0]


def test_a_dataset_has_no_training_split_to_be_scored(tiny_dataset: Path) -> None:
    with pytest.raises(ConfigError, match="--split train: has no effect on"):
        evaluate.main([str(tiny_dataset), "--split", "train"])
