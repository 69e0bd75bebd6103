"""``alpose-train harvest-gain``: what a batch of labels is worth, by the strategy that chose it."""
