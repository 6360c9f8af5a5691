"""What things cost, beside their peers: `python -m benchmarks cam|radon|volume` from the repository's root."""
