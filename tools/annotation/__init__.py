"""A batch on its way to annotators, and what comes back."""
