"""The offline trainer: datasets, models, loss heads, samplers, and the active-learning benchmark."""
