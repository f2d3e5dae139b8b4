"""Every converter declared: from small made-up files of its format to a dataset that trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.config import load_config
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.data import (
    test_aliccp,
    test_avito,
    test_diginetica,
    test_eleme,
    test_jdsearch,
    test_kuaisar,
    test_mind,
)

LOGS: dict[str, Callable[[Path], object]] = {
    "aliccp": test_aliccp.write_log,
    "avito": test_avito.write_log,
    "diginetica": test_diginetica.write_log,
    "eleme": test_eleme.write_log,
    "jdsearch": lambda folder: test_jdsearch.write_log(folder, *[test_jdsearch.search()] * 9),
    "kuaisar": test_kuaisar.write_log,
    "mind": test_mind.write_log,
}


@pytest.mark.slow
@pytest.mark.parametrize("log", LOGS)
def test_a_log_becomes_a_dataset_that_its_layer_can_read(tmp_path: Path, log: str) -> None:
    LOGS[log](tmp_path / "log")
    data = tmp_path / "data"
    main([log, "--input", str(tmp_path / "log"), "--output", str(data), "--threads", "1"])
    schema = load_schema(data)
    assert schema.name == log
    assert (schema.history.num_behaviours > 0) == (log != "aliccp")
    config = load_config(ExperimentConfig, [f"data/{log}.toml", "interest/pooled.toml"])
    assert config.data.dir == Path("data") / log
    named = {*config.data.exclude_features, *config.model.interaction.exclude}
    assert named <= {feature.name for feature in schema.features}
    assert set(config.data.vocabulary) <= set(schema.entities)
