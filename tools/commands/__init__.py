"""The commands of ``alpose-harvest``, one module each; loaded when they are called."""
