"""Datasets: one reader per format, one in-memory record type, one crop cache."""
