"""The commands of ``alpose-harvest``, and ``alpose-train select``."""
