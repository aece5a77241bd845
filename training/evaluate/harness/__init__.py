"""Tasks of lm-evaluation-harness (the package lm-eval) on Millrace's models."""
