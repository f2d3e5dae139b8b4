"""Imported by the process that loader workers are forked from, and by nobody else.

It imports what batches need, so that a worker starts at once. And it leaves the rank's process
group: a launcher and a terminal send SIGTERM and SIGINT to the whole group, but when a rank still
writes a checkpoint, it needs its workers; they end with their rank, whatever ended that.
"""

import os

import cdp_torchrec.data.loader
import cdp_torchrec.data.workers  # noqa: F401

os.setsid()
