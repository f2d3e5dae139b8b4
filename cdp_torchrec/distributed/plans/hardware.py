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
    kernel_us: PositiveFloat | None = None
    """Least time of one operation of the dense part: the launch of its kernel."""
    lookup_us: PositiveFloat | None = None
    """Fixed time of looking up and updating the tables of one kind of sharding."""
    collective_us: PositiveFloat | None = None
    """Fixed time of one collective, between its call and the first byte."""
    message_us: PositiveFloat | None = None
    """Time that each further rank adds to a collective, whatever it carries."""
    step_ms: PositiveFloat | None = None
    """Fixed time of a step that belongs to none of these: the loop, the pipeline, the copy of the
    batch, the optimizers."""
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

    @property
    def defaults(self) -> tuple[str, ...]:
        """Fixed costs that the file does not have, and that are taken from other hardware."""
        return tuple(name for name in _FIXED_COSTS[self.device] if getattr(self, name) is None)

    def fixed_cost(self, name: str) -> float:
        """A fixed cost in the unit of its name, or its default."""
        own = getattr(self, name)
        return _FIXED_COSTS[self.device][name] if own is None else own

    def collective_ms(self, num_messages: int) -> float:
        """Fixed time of a collective that passes so many messages one after the other."""
        microseconds = self.fixed_cost("collective_us")
        return (microseconds + num_messages * self.fixed_cost("message_us")) / 1e3

    @property
    def uncertainty(self) -> float:
        """Factor between an estimate of a step and either end of its range.

        Published and measured steps lie within the smaller one where the fixed costs were fitted;
        with fixed costs of other hardware nobody knows, and the larger one is a guess.
        """
        return 1.3 if not self.defaults else 2.0


_FIXED_COSTS = {
    # step_ms is fitted on the published steps of torchrec_dlrm on A100s; of the others, which
    # these do not tell apart, it takes up what is wrong.
    "cuda": {
        "kernel_us": 5.0,
        "lookup_us": 100.0,
        "collective_us": 50.0,
        "message_us": 3.0,
        "step_ms": 7.0,
    },
    # Fitted by launch/benchmark.py plans on 2 ranks of one core each, without step_ms.
    "cpu": {
        "kernel_us": 2.0,
        "lookup_us": 370.0,
        "collective_us": 700.0,
        "message_us": 500.0,
        "step_ms": 2.0,
    },
}


_PLAUSIBLE = {
    "device_memory_gb": (1, 2_000),
    "host_memory_gb": (0.1, 100_000),
    "device_bandwidth_gb_s": (10, 100_000),
    "host_bandwidth_gb_s": (0.01, 10_000),
    "host_to_device_gb_s": (0.1, 10_000),
    "intra_node_gb_s": (0.001, 20_000),
    "inter_node_gb_s": (0.001, 20_000),
    "matmul_tflops": (0.0001, 100_000),
    "kernel_us": (0.01, 10_000),
    "lookup_us": (0.1, 1e6),
    "collective_us": (0.1, 1e6),
    "message_us": (0.01, 1e6),
    "step_ms": (0.001, 10_000),
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
