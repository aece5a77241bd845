"""Model FLOPs of a training step per token: what the mathematics asks for, not what an implementation spends."""

from configs.schema.models import ModelSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense


def flops_per_token(model: ModelSection, vocab_size: int, context: int, predicts: bool = True) -> float:
    """Forward and backward FLOPs of a token, averaged over the positions of a sequence of ``context`` tokens.

    A multiplication and an addition are two. Norms, rotations, softmax and what activation checkpointing computes
    again are left out. Of an encoder-decoder a token is one of the target's, with as long a source before it.
    ``predicts``: with the modules of multi-token prediction.
    """
    return matrix_flops_per_token(model, vocab_size, predicts) + attention_flops_per_token(model, context, predicts)


def matrix_flops_per_token(model: ModelSection, vocab_size: int, predicts: bool = True) -> float:
    """6 for every active parameter that is in a matrix: 2 forward, and 2 for each of the two gradients.

    A classifier's head, which reads a text and not a token, is left out; what is frozen counts as if it were not.
    """
    if isinstance(model, ClassifierSection):
        head = 6.0 * vocab_size * model.backbone.hidden_size
        return matrix_flops_per_token(model.backbone, vocab_size, predicts) - head
    if isinstance(model, DeepseekSection):
        return 6.0 * deepseek.matrix_parameters(model, vocab_size, predicts)
    return 6.0 * dense.matrix_parameters(model, vocab_size)


def attention_flops_per_token(model: ModelSection, context: int, predicts: bool = True) -> float:
    """Scores and weighted values against the positions that a token sees on average, (context + 1) / 2 where causal.

    Many published figures count all of ``context`` and are about twice as large.
    """
    trunk = model.backbone_section
    if isinstance(trunk, DeepseekSection):
        return deepseek.attention_flops(trunk, context, predicts)
    return dense.attention_flops(trunk, context)
