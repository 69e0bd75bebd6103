"""The whole loop on rendered people: train, export, watch, harvest, annotate, train again. ``make demo``."""
