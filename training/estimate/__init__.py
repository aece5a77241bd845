"""Closed-form estimates of a model's parameters, FLOPs and memory, from its recipe and without importing torch."""

from training.estimate.counts import Parameters
from training.estimate.device import Device, device_of
from training.estimate.fitting import advice, largest_micro_batch
from training.estimate.flops import flops_per_token
from training.estimate.memory import Memory, memory
from training.estimate.parameters import parameters

__all__ = [
    "Device",
    "Memory",
    "Parameters",
    "advice",
    "device_of",
    "flops_per_token",
    "largest_micro_batch",
    "memory",
    "parameters",
]
