"""A single-process DeepSpeed engine around a benchmark model, with everything that training needs."""

import functools
import os
from typing import Any, NamedTuple

import torch

from artefacts.checkout import CHECKOUT
from benchmarks.model.shapes import SHAPES, VOCAB
from configs.schema.adapter import LoraSection
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.train import TrainSection
from training.data.batch import Batch
from training.distributed.join import join
from training.distributed.ranks import Ranks
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective
from training.optim.build import build_optimizer
from training.optim.trained_part import TrainedPart

SAMPLES, LENGTH = 8, 256
#: Twelve layers, so narrow that Python overhead dominates on any machine. See also ``LENGTHS``.
_NARROW = SHAPES["17M"].model_copy(
    update={
        "hidden_size": 32,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }
)
_SHAPES = {**SHAPES, "narrow": _NARROW}
#: Size -> tokens per sample, if not ``LENGTH``.
LENGTHS = {"narrow": 16}
_OPERATORS = CHECKOUT / ".cache" / "torch_extensions"


class Setup(NamedTuple):
    """An engine, its objective, and the settings that they were built from."""

    shape: DeepseekSection
    train: TrainSection
    engine: Any
    objective: Objective
    ranks: Ranks


class SameTokens:
    """Data with the same global batch at every step, so that reading data is not measured."""

    def __init__(self, samples: int = SAMPLES, length: int = LENGTH) -> None:
        tokens = torch.randint(0, VOCAB, (samples, length + 1), generator=torch.Generator().manual_seed(0))
        self.batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def micro_batches(self, _step: int, _rank: int, _ranks: int, micro_batch: int) -> list[Batch]:
        inputs, labels = self.batch.inputs.split(micro_batch), self.batch.labels.split(micro_batch)
        return [Batch(*pair) for pair in zip(inputs, labels, strict=True)]


@functools.cache
def alone() -> Ranks:
    """Return this process as a process group of one."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_OPERATORS))
    return join()


def setup(size: str, precision: str, stage: int, micro_batch: int = SAMPLES, lora: LoraSection | None = None) -> Setup:
    """Build a single-process engine around the model of this size, with the recipes' default optimizer.

    With ``lora``, only adapters are trained.
    """
    ranks, shape, length = alone(), _SHAPES[size], LENGTHS.get(size, LENGTH)
    train = TrainSection(
        context_length=length,
        global_batch_tokens=SAMPLES * length,
        steps=10**6,
        learning_rate=1e-4,
        precision=precision,  # type: ignore[arg-type]
        zero_stage=stage,  # type: ignore[arg-type]
    )
    model = DeepseekForCausalLM(shape, VOCAB)
    init_weights(model, 0)
    TrainedPart(lora).prepare(model, 0, new=True)
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate)
    config = deepspeed_config(train, 1, 1, SAMPLES, micro_batch)
    return Setup(shape, train, build_engine(model, optimizer, config, ranks), Objective(shape, train), ranks)


def synchronize(ranks: Ranks) -> None:
    """Wait for the GPU, if there is one."""
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
