"""Evaluation of a run: loss and bits per byte compared with baselines, tasks on held-out examples, attention maps."""
