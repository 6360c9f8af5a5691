"""What MONAI lacks and more than one bundle needs: pooling, binarization, metrics, organ masks, data."""
