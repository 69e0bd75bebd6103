"""From the fleet's queues to annotated data, and what that data says of the field: ``alpose-harvest``."""
