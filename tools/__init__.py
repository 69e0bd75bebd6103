"""From the fleet's queues to annotated data. Empty today: nothing is harvested yet."""
