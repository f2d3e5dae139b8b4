"""What the ranks of a test have imported when they start; see `spawn`."""

import pyarrow.dataset  # noqa: F401
import torch.distributed.optim  # noqa: F401
import torchrec.optim.apply_optimizer_in_backward  # noqa: F401

import cdp_torchrec.experiment  # noqa: F401
