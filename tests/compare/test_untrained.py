"""The untrained rows are those that launch/evaluate.py shows."""

from pathlib import Path

import pytest

from cdp_torchrec.compare.untrained import measure_untrained
from cdp_torchrec.reference_scorers import evaluate_references


def test_untrained_rows_are_those_of_evaluate(tiny_dataset: Path, one_rank: None) -> None:
    reports = measure_untrained(tiny_dataset, num_bootstrap=8)
    shown = [line.split() for line in evaluate_references(tiny_dataset).splitlines()[1:]]
    assert set(reports) == {line[0] for line in shown}
    for name, auc, uauc, gauc, *_ in shown:
        report = reports[name]
        found = [float(auc), float(uauc), float(gauc)]
        assert [report.auc, report.uauc, report.gauc] == pytest.approx(found, abs=6e-5)
