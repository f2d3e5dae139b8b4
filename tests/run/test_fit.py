"""What is said of a checkpoint that does not fit."""

from pathlib import Path

import pytest

from cdp_torchrec.run.fit import config_differences
from cdp_torchrec.run.saved import CONFIG


@pytest.mark.parametrize(
    ("section", "key", "ours", "theirs"),
    [
        ("data.history", "dayparts", "4", "1"),
        ("data.history", "count_segments", "[3]", "[1, 2]"),
        ("data.history", "count_ages", "[1.5, 7.5]", "[]"),
        ("data", "exclude_features", "['hour']", "[]"),
        ("model", "embedding_dim", "8", "16"),
    ],
)
def test_the_setting_that_makes_another_model_is_named(
    tmp_path: Path, section: str, key: str, ours: str, theirs: str
) -> None:
    (tmp_path / CONFIG).write_text(f"[{section}]\n{key} = {theirs}\n")
    found = config_differences(tmp_path, f"[{section}]\n{key} = {ours}\n[run]\ndir = 'other'\n")
    assert found == [f"{section}.{key} = {ours}, in the checkpoint {theirs}"]
