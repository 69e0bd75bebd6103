"""What the labelled frames of a fleet say about all of its frames."""
