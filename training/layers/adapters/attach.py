"""Adds adapters to a model, and initializes or loads them."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from artefacts.errors import RequestError
from configs.schema.adapter import LoraSection
from training.adapter_names import EXPERT_ADAPTERS, EXPERT_WEIGHTS, LINEAR_TARGETS, is_adapter
from training.layers.adapters.modules import LoraLinear, StackedAdapter
from training.layers.linear import Linear
from training.layers.moe import Experts, MixtureOfExperts


def attach_adapters(model: nn.Module, lora: LoraSection) -> None:
    """Freeze all weights of a model, and add adapters with uninitialized weights to the targeted layers."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    patterns = [LINEAR_TARGETS[target] for target in lora.targets or LINEAR_TARGETS if target != "routed_experts"]
    for name, module in model.named_modules():
        if type(module) is Linear and any(pattern.fullmatch(name) for pattern in patterns):
            # Only the class changes, so that the weight keeps its name.
            module.__class__ = LoraLinear
            assert isinstance(module, LoraLinear)
            module.add_adapter(lora)
        elif lora.routed and isinstance(getattr(module, "mlp", None), MixtureOfExperts):
            _attach_to_experts(module, module.mlp.experts, lora)


def _attach_to_experts(layer: nn.Module, experts: Experts, lora: LoraSection) -> None:
    adapters = nn.ModuleDict({name: StackedAdapter(lora, getattr(experts, name)) for name in EXPERT_WEIGHTS})
    setattr(layer, EXPERT_ADAPTERS, adapters)
    experts.adapters = (adapters,)  # in a tuple, so that they stay submodules of the decoder layer only


def init_adapters(model: nn.Module, seed: int) -> None:
    """Initialize all adapters in place. As for all weights, the draws depend only on the seed and the name."""
    for name, adapter in adapters_of(model):
        adapter.init_adapter(f"{seed}/{name}")


def adapters_of(model: nn.Module) -> Iterator[tuple[str, LoraLinear | StackedAdapter]]:
    """Yield the name and the module of each adapter in a model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | StackedAdapter):
            yield name, module


@torch.no_grad()
def load_adapters(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights into the adapters of a model, in place.

    Raises:
        RequestError: the model lacks one of the adapters or has it in a different shape, or one is not in the weights.
    """
    adapters = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    for name, weight in weights:
        parameter = adapters.pop(name, None)
        if parameter is None or parameter.shape != weight.shape:
            has = "no such adapter" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise RequestError(f"the adapter has {name} of shape {tuple(weight.shape)}, but the model has {has}")
        parameter.copy_(weight)
    if adapters:
        first = next(iter(adapters))
        raise RequestError(f"the adapter lacks {first} ({len(adapters)} missing in total): it is of a different model")
