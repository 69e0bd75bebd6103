"""From a checkpoint to a verified bundle. Empty today: nothing is exported yet."""
