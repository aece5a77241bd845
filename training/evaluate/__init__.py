"""Evaluation of a run: loss and bits per byte next to baselines, tasks on held-out examples, attention maps."""
