"""Builds the DeepSpeed engine around a model: ZeRO, AutoEP, precision, our optimizer."""

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
from training.engine.expert_parallel import install_routers


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], ranks: Ranks) -> Any:
    """Call ``deepspeed.initialize``, where AutoEP replaces the expert layers, and install our routers in those.

    Args:
        model: single-device model in fp32 on CPU, with the same weights on every rank that has them. DeepSpeed moves it
            to the device after it has dropped the experts of other ranks and converted the rest to the compute dtype.
        optimizer: over the ``parameter_groups`` of that model.
        config: from ``deepspeed_config``.
        ranks: this process.

    Raises:
        RequestError: the optimizer is to be offloaded to a disk, and the folder or the operator for it cannot be
            created here.
    """
    # DeepSpeed calls collectives that torch has renamed, and torch warns about it at every start.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    offload = config["zero_optimization"].get("offload_optimizer", {})
    if offload.get("device") == "nvme":
        _require_folder(Path(offload["nvme_path"]))
        operators.build_file_access(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()))
    with _quick_start():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if engine.fp16_enabled():
        # The trainer counts gradients that are not finite at the lowest scale; DeepSpeed would end the process.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    install_routers(engine.module, ranks.rank)
    return engine


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """Skip what takes seconds of DeepSpeed's initialization on every rank and is not used here."""
    import deepspeed

    # On CPU it would build an operator here, collectives over shared memory for inference. Every start would need a
    # C++ compiler, and wait for a lock file that a killed process leaves behind.
    deepspeed.ops.__compatible_ops__ = {}
    # It imports its own Muon to compare classes, and with it a compiler for its kernels. Ours is a different Muon.
    with _without_compile():
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    # It collects garbage eight times to print memory usage: freezing keeps that from visiting everything imported.
    gc.freeze()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _without_compile() -> Iterator[None]:
    """In this context ``torch.compile`` returns functions unchanged."""
    compiled = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


def _uncompiled(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    """Stands in for ``torch.compile``, with a function or, as a decorator with options, without one."""
    return _uncompiled if function is None else function


def _require_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"train.offload_path={path} cannot be created: {error.strerror}; choose another folder"
        ) from None
