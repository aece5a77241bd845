"""The run as one self-contained page: reads metrics, manifests and the evaluation, and imports no model code."""
