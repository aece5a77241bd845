"""Builds the DeepSpeed engine around a model, with ZeRO, AutoEP, mixed precision and our optimizer."""

import contextlib
import gc
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.cpp_extension import get_default_build_root

from artefacts.errors import RequestError
from training.distributed.ranks import Ranks
from training.engine import operators
from training.engine.expert_parallel import install_expert_adapters, install_routers


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], ranks: Ranks) -> Any:
    """Call ``deepspeed.initialize``, which lets AutoEP replace the expert layers, and install our routers and adapters.

    Args:
        model: single-device model in fp32 on CPU. A weight that several ranks hold must be identical on all of them.
            DeepSpeed drops other ranks' experts, casts the rest to the compute dtype, and only then moves the model to
            the device.
        optimizer: an optimizer over the model's ``parameter_groups``.
        config: from ``deepspeed_config``.
        ranks: this process's position among all ranks.

    Raises:
        RequestError: the optimizer is to be offloaded to disk, but the folder cannot be created or DeepSpeed's operator
            cannot be built on this node.
    """
    # DeepSpeed calls collectives by deprecated names, so torch would warn at every start.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    offload = config["zero_optimization"].get("offload_optimizer", {})
    if offload.get("device") == "nvme":
        _require_folder(Path(offload["nvme_path"]))
        operators.build_file_access(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()))
    with _quick_start(), _frozen_experts(optimizer):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if engine.fp16_enabled():
        # At the lowest loss scale, DeepSpeed would raise an error; the trainer counts steps with non-finite gradients.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    install_routers(engine.module, ranks.rank)
    install_expert_adapters(engine.module)
    return engine


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """Skip parts of DeepSpeed's initialization that take seconds on every rank and are not needed here."""
    import deepspeed

    # On CPU, DeepSpeed would build an operator here (shared-memory collectives for inference). Every start would then
    # need a C++ compiler, and would hang on the lock file that a killed process leaves behind.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed imports its own Muon for a type check, and that import calls torch.compile. We do not use its Muon.
    with _without_compile():
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    # DeepSpeed collects garbage eight times to print memory usage. Freezing exempts all existing objects.
    gc.freeze()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _frozen_experts(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let DeepSpeed's optimizers accept a model whose experts are all frozen.

    Below ZeRO stage 3, they require a parameter group of experts if the model has expert layers. Without that group,
    they treat all trained parameters alike, which is right for parameters that are not experts.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    names = ("_configure_zero_optimizer", "_configure_bf16_optimizer")
    originals = {name: getattr(DeepSpeedEngine, name) for name in names}
    if not any(group.get("moe") for group in optimizer.param_groups):
        for name, original in originals.items():
            setattr(DeepSpeedEngine, name, _without_experts(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(DeepSpeedEngine, name, original)


def _without_experts(configure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap a method of DeepSpeed's engine that builds an optimizer, to hide the expert layers below stage 3."""

    def configure_without_experts(engine: Any, optimizer: Any) -> Any:
        has_experts = engine.has_moe_layers
        engine.has_moe_layers = has_experts and engine.zero_optimization_partition_weights()
        try:
            return configure(engine, optimizer)
        finally:
            engine.has_moe_layers = has_experts

    return configure_without_experts


@contextlib.contextmanager
def _without_compile() -> Iterator[None]:
    """Make ``torch.compile`` return functions unchanged inside this context."""
    compiled = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


def _uncompiled(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    """Return the function unchanged. As with ``torch.compile``, passing only options returns a decorator."""
    return _uncompiled if function is None else function


def _require_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"train.offload_path={path} cannot be created: {error.strerror}; choose another folder"
        ) from None
