"""The three questions put to the model: pointwise, pairwise, listwise."""
