"""Evaluation of a run: loss and bits per byte against baselines, task metrics on held-out examples, attention maps."""
