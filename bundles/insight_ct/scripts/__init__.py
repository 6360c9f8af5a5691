"""What only this bundle has: aggregators of frozen features that explain themselves, and the bags they learn from."""
