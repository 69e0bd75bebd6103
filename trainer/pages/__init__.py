"""The HTML pages of the trainer, and the kit from which every page of alpose is made."""
