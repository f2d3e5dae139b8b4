"""The load test of an endpoint, from the command line, on a server that is started for it."""

import json
from pathlib import Path

import pytest

from cdp_torchrec.commands import benchmark


@pytest.mark.slow
def test_a_server_bears_load_a_reload_and_malformed_requests(
    artifact: Path, other_artifact: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = [
        f"dataset={tiny_dataset}",
        f"reload={other_artifact}",
        "duration_s=2.0",
        "num_clients=2",
        "num_attackers=1",
        "num_requests=8",
        "attack_s=1.0",
        f"output={tmp_path}",
    ]
    benchmark.main(["endpoint", str(artifact), *(f"benchmark.{s}" for s in settings)])
    found = json.loads((tmp_path / "endpoint.json").read_text())
    assert set(found["valid_requests"]) == {"right"}
    assert set(found["malformed_requests"]) == {"right"}
    assert len(found["answered_by_version"]) == 2
    assert found["reload_answer"].startswith("200") and found["exit_code"] == 0
    assert found["requests_per_s"] > 0
    assert len(found["attacks"]) == 5
    for siege in found["attacks"].values():
        assert set(siege["valid_requests"]) <= {"right", "refused"}
        assert siege["valid_requests"]["right"] > 0
