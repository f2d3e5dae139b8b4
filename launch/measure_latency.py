"""`cdp_torchrec measure_latency` from the checkout."""

from cdp_torchrec.commands.measure_latency import main
from cdp_torchrec.distributed.process_group import run_main

if __name__ == "__main__":
    run_main(main)
