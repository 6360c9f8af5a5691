"""The commands of `python -m common`, one a file."""
