"""What MONAI lacks and more than one bundle needs: pooling, binarisation, metrics, organ masks, data."""
