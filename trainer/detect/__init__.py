"""Failure detectors beside each other: what finds the frames on which one fixed pose net is wrong."""
