"""Pose networks and loss heads."""
