"""Side-by-side measurements; each writes its result under ``bench/results``."""
