"""From the devices' queues into an inbox."""
