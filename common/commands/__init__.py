"""The commands of `python -m common`, one a file; what serves them lies beside them."""
