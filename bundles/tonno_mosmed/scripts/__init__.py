"""What only this bundle has: planes at any angle to train on, tomographic inference, and the scores of the paper."""
