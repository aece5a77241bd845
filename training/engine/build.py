"""A plain model made a DeepSpeed engine: ZeRO, AutoEP, precision, the client optimiser."""

import logging
import os
from typing import Any

import torch
from torch import nn

from training.engine.distributed import Ranks


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], ranks: Ranks) -> Any:
    """``deepspeed.initialize`` with our optimiser; the engine replaces expert layers by AutoEP's.

    Args:
        model: single-device model in fp32, the same weights on every rank.
        optimizer: over ``parameter_groups`` of that model.
        config: from ``deepspeed_config``.
        ranks: this process.
    """
    if not ranks.first:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING if ranks.first else logging.ERROR)
    engine, *_ = deepspeed.initialize(model=model.to(ranks.device), optimizer=optimizer, config=config)
    return engine
