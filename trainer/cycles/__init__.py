"""``alpose-train cycles``: the active-learning benchmark, from its models to what it leaves on disk."""
