"""The commands of `python -m common`, one a file; `run` and `verify_build` serve them."""
