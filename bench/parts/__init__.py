"""Measurements behind the commands of this folder: contestants, footage, and how time is taken."""
