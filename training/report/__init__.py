"""The report: one self-contained page per run, built from metrics, manifests and evaluation results.

It imports no model code.
"""
