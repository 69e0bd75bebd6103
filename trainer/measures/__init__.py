"""Measures of poses, scores and probabilities, and the statistics that compare them."""
