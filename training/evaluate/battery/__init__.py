"""A battery of lm-eval tasks that needs no network. It is built from a run's held-out documents and from ``pydocs``."""
