"""Whole slides: reading and tiling, bags of features, heatmaps and masks as pyramids, scores."""
