"""The hardware that a job runs on."""

import os

import torch

from cdp_torchrec.distributed.plans.hardware import GB, HardwareConfig, load_hardware


def local_hardware(device: torch.device, local_world_size: int) -> HardwareConfig:
    """The nearest named hardware, with the memory of this machine.

    Args:
        device: where this rank computes.
        local_world_size: ranks on this machine, which share its memory.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB / local_world_size
    found = {"name": "local", "ranks_per_node": local_world_size, "host_memory_gb": host}
    if device.type == "cpu":
        return load_hardware("cpu").model_copy(update=found)
    found["device_memory_gb"] = torch.cuda.get_device_properties(device).total_memory / GB
    return load_hardware("a100-80").model_copy(update=found)
