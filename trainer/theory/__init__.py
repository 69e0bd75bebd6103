"""The mathematics of Learning Loss, and the same of one run."""
