"""A pool of unlabelled pictures: who is on them, what a model says of everybody, and who is labelled next."""
