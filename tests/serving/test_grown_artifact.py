"""What is served of a run on appended days knows their ids, and reads a store that has grown."""

from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.days import load_days, read_schema
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.tables.embedding_table import stored_table
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.export import _copy_vocabulary
from cdp_torchrec.serving.parts import open_store, open_vocabularies
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill


def test_an_artifact_of_appended_days_has_their_ids_and_rows(
    make_once: MakeOnce, tmp_path: Path
) -> None:
    dataset, artifact = make_once("appended", fill) / "grown", tmp_path
    config = DataConfig(dir=dataset, train_on=("test", DAYS[0]), test_on=DAYS[1])
    schema = read_schema(config)
    schema.save(artifact)
    for name, entity in schema.entities.items():
        _copy_vocabulary(name, schema, dataset, artifact, entity)
    copy = load_schema(artifact)
    assert copy == schema
    raw = stored_ids(dataset, schema, "item").to_pylist()
    codes = open_vocabularies(artifact, copy)["item"].codes(raw, field="item")
    assert codes.tolist() == list(range(1, len(raw) + 1))
    few = VocabularyConfig(min_count=3, num_oov_rows=2)
    one, other = (stored_table(d, s, "item", few) for d, s in ((dataset, schema), (artifact, copy)))
    assert len(one.later) and (one.rows(codes) == other.rows(codes)).all()

    store = open_store(dataset, copy, artifact)
    last = load_days(dataset, load_schema(dataset))[-1]
    users = np.arange(1, last.entities["user"].num_ids + 1)
    _, before = store.recent(users, np.full(len(users), last.requests.first_timestamp))
    _, until = store.recent(users, np.full(len(users), last.last_timestamp + 1))
    assert until.lengths.sum() > before.lengths.sum() > 0
    day = copy.days[0]
    item = day.entities["item"].model_copy(update={"digest": "of other ids"})
    other_day = day.model_copy(update={"entities": day.entities | {"item": item}})
    with pytest.raises(ArtifactError, match="was trained on another dataset"):
        open_store(dataset, copy.model_copy(update={"days": (other_day, *copy.days[1:])}), artifact)
