"""How many parameters a model of any family has, and how many of them act on one token."""

from configs.schema.models import ModelSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense
from training.estimate.counts import Parameters


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count by part for a model whose embedding and head have ``vocab_size`` rows."""
    if isinstance(model, DeepseekSection):
        return deepseek.parameters(model, vocab_size)
    return dense.parameters(model, vocab_size)
