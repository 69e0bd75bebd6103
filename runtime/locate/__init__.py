"""Where people are on a frame, before the net looks at it, and which of them is who."""
