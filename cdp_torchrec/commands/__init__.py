"""The commands: `cdp_torchrec <command> ...`, one file each, run by itself or by __main__.

A command first parses its arguments and checks the configuration and the paths that they name, and
only then imports torch in the body of its `main`: a mistake and a help cost no more than a second.
"""
