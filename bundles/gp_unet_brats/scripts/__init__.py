"""What only this bundle has: the global-pooling networks and the pseudo-mask second stage."""
