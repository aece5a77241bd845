"""Closed-form parameters and FLOPs of a model from its recipe, without importing torch."""

from training.estimate.flops import flops_per_token
from training.estimate.parameters import Parameters, parameters

__all__ = ["Parameters", "flops_per_token", "parameters"]
