"""`cdp_torchrec prepare_data` from the checkout."""

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.distributed.process_group import run_main

if __name__ == "__main__":
    run_main(main)
