"""The report: one self-contained page per run, from metrics, manifests and the evaluation; imports no model code."""
