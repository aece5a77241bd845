"""A plain model made a DeepSpeed engine: ZeRO, AutoEP, precision, the client optimiser."""

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
from training.engine.expert_parallel import adopt_routers


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], ranks: Ranks) -> Any:
    """``deepspeed.initialize`` with our optimiser; AutoEP replaces the expert layers, our gates their routers.

    Args:
        model: single-device model in fp32 on CPU, the same weights on every rank that has them; DeepSpeed moves it to
            the device when the experts of other ranks are gone and the rest is in the dtype that is computed in.
        optimizer: over ``parameter_groups`` of that model.
        config: from ``deepspeed_config``.
        ranks: this process.

    Raises:
        RequestError: offloading to a disk was asked for, and the folder or the operator for it cannot be made here.
    """
    # DeepSpeed calls collectives that torch has renamed; it is theirs to mend and says so at every start.
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
        # A gradient that is no number at the least scale is for the loop to count, not the end of the process.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    adopt_routers(engine.module, ranks.rank)
    return engine


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """Without what costs DeepSpeed's initialization seconds on every rank and is of no use to us."""
    import deepspeed

    # Of the operators that it probes for here it builds one, on CPU: collectives of inference over shared memory. Each
    # start would need a C++ compiler, and wait at a lock that a killed process leaves behind.
    deepspeed.ops.__compatible_ops__ = {}
    # It imports its own Muon to know it by its class, and with it the compiler for its kernels; ours is another Muon.
    with _nothing_compiled():
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    # It collects garbage eight times, to report memory on stdout: what has been imported is not looked through then.
    gc.freeze()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Meanwhile ``torch.compile`` leaves functions as they are."""
    compiled = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled


def _uncompiled(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    """``torch.compile``, also as the maker of a decorator, of functions that stay as they are."""
    return _uncompiled if function is None else function


def _require_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"train.offload_path={path} cannot be made: {error.strerror}; name another folder") from None
