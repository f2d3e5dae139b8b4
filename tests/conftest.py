"""Settings of every test: one thread per process, so that tests and ranks share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch

from cdp_torchrec.environment import quiet_libraries

quiet_libraries()
