"""A plan is made for the GPU that is there."""

import logging

import pytest

from cdp_torchrec.distributed.plans.job import nearest_gpu


@pytest.mark.parametrize(
    ("name", "memory_gb", "found"),
    [
        ("NVIDIA H200", 150.1, "H200"),
        ("NVIDIA H100 80GB HBM3", 85.0, "H100"),
        ("NVIDIA A100-SXM4-40GB", 42.4, "A100-40"),
        ("NVIDIA A100-SXM4-80GB", 85.1, "A100-80"),
        ("NVIDIA A10", 24.1, "A10"),
        ("NVIDIA L40S", 47.7, "L40S"),
    ],
)
def test_a_gpu_is_found_by_its_name_and_memory(name: str, memory_gb: float, found: str) -> None:
    assert nearest_gpu(name, memory_gb).name == found


def test_an_unknown_gpu_is_said_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        hardware = nearest_gpu("NVIDIA A10G", 24.0)  # no A10
    assert hardware.name == "A100-80"
    assert "A10G is unknown: plans are estimated with the bandwidths of an A100" in caplog.text
