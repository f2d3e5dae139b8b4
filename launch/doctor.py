"""`cdp_torchrec doctor` from the checkout."""

import sys

from cdp_torchrec.commands.doctor import main

if __name__ == "__main__":
    main(sys.argv[1:])
