"""Pose nets that somebody else trained: described, run as they are, read, and given a loss head of their own."""
