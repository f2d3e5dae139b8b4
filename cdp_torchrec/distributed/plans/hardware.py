"""Hardware that a plan is made for: memory and bandwidths, by name or from a TOML file."""

from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, ConfigError, load_toml

SKUS = Path(__file__).parent / "skus"
"""One file for each hardware that has a name."""

GB = 10**9


class HardwareConfig(Config):
    """One node of a cluster, and the network between nodes. 1 GB is 10^9 bytes.

    Bandwidths count one direction. In the files that come with the package, those of memory are of
    the data sheet, and those of links and the rate of matrix products are what training usually
    reaches; launch/benchmark.py plans fits them to a machine.
    """

    name: str
    """What tables and figures call it."""
    device: Literal["cuda", "cpu"]
    """Where ranks keep tables and compute."""
    ranks_per_node: PositiveInt
    """GPUs of a node, or ranks of a CPU host."""
    device_memory_gb: NonNegativeFloat = 0.0
    """Memory of one GPU (HBM, GDDR)."""
    host_memory_gb: PositiveFloat
    """Memory of the host, per rank."""
    device_bandwidth_gb_s: PositiveFloat | None = None
    """Between a GPU and its memory."""
    host_bandwidth_gb_s: PositiveFloat
    """Between the cores of one rank and host memory."""
    host_to_device_gb_s: PositiveFloat | None = None
    """Between host memory and a GPU (PCIe, NVLink-C2C); what UVM tables are read through."""
    intra_node_gb_s: PositiveFloat
    """Of one rank to the others on its node (NVLink, PCIe, shared memory), in a collective."""
    inter_node_gb_s: PositiveFloat
    """Of one rank to ranks on other nodes, in a collective."""
    matmul_tflops: PositiveFloat
    """Rate of matrix products that training reaches, in 10^12 FLOP/s of one rank."""
    price_per_rank_hour: PositiveFloat | None = None
    """Price of one rank for an hour, in any currency; without it costs are rank-hours only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if self.device == "cuda":
            needed = ("device_memory_gb", "device_bandwidth_gb_s", "host_to_device_gb_s")
            missing = [name for name in needed if not getattr(self, name)]
            conflicts += [(name, "required with device = 'cuda'") for name in missing]
        for name, (low, high) in _PLAUSIBLE.items():
            value = getattr(self, name)
            if value and not low <= value <= high:
                conflicts.append((name, f"expected {low:g} to {high:g}, in the unit of its name"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    @property
    def memory_gb(self) -> float:
        """Memory of one rank's device, where its tables live."""
        return self.device_memory_gb if self.device == "cuda" else self.host_memory_gb


_PLAUSIBLE = {
    "device_memory_gb": (1, 2_000),
    "host_memory_gb": (0.1, 100_000),
    "device_bandwidth_gb_s": (10, 100_000),
    "host_bandwidth_gb_s": (0.01, 10_000),
    "host_to_device_gb_s": (0.1, 10_000),
    "intra_node_gb_s": (0.001, 20_000),
    "inter_node_gb_s": (0.001, 20_000),
    "matmul_tflops": (0.0001, 100_000),
}


def hardware_names() -> list[str]:
    """Names of the hardware that comes with the package."""
    return sorted(path.stem for path in SKUS.glob("*.toml"))


def load_hardware(name: str) -> HardwareConfig:
    """Hardware by name, or from a file of the user's.

    Args:
        name: one of `hardware_names`, or a path ending in .toml.

    Raises:
        ConfigError: no such name or file, or the file is wrong.
    """
    if name.endswith(".toml"):
        return load_toml(HardwareConfig, Path(name))
    if name not in hardware_names():
        raise ConfigError(
            f"hardware '{name}': unknown; expected one of {', '.join(hardware_names())}, or a "
            "path ending in .toml"
        )
    return load_toml(HardwareConfig, SKUS / f"{name}.toml")
