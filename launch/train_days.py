"""`cdp_torchrec train_days` from the checkout."""

from cdp_torchrec.commands.train_days import main
from cdp_torchrec.distributed.process_group import run_main

if __name__ == "__main__":
    run_main(main)
