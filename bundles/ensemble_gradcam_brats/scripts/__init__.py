"""What only this bundle has: several classifiers as one network, and how their Grad-CAMs become one mask."""
