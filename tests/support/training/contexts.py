"""Training contexts for tests of the trainer and its callbacks."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch

from artefacts.signals import StopRequest
from artefacts.training_folder import TrainingRun
from configs.schema.train import TrainSection
from training.distributed.ranks import Ranks
from training.trainer.context import TrainingContext


def stub_context(**parts: Any) -> TrainingContext:
    """A context of one rank on CPU; what ``parts`` leaves out does nothing."""
    train = TrainSection(
        context_length=8, global_batch_tokens=16, steps=8, precision="fp32", zero_stage=0, learning_rate=1e-3
    )
    stubs = {name: Mock() for name in ("engine", "objective", "data", "balancer", "saver")}
    return TrainingContext(
        **{
            "run": TrainingRun("test", Path("nowhere"), {}, {}),
            "train": train,
            "ranks": Ranks(0, 1, 0, torch.device("cpu")),
            "validation": [],
            "stop": StopRequest(),
            "global_batch": 2,
            "flops_per_token": 1.0,
            **stubs,
            **parts,
        }
    )
