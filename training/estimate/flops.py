"""Model FLOPs of training per token: what the mathematics requires, not what an implementation executes."""

from configs.schema.models import ModelSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense


def flops_per_token(model: ModelSection, vocab_size: int, context: int, predicts: bool = True) -> float:
    """Forward and backward FLOPs per token, averaged over the positions of a sequence of ``context`` tokens.

    A multiply-add counts as two. Norms, rotations, softmax and recomputation by activation checkpointing are left out.
    For an encoder-decoder the tokens are those of the target, with a source of the same length. ``predicts``: with the
    modules of multi-token prediction.
    """
    return matrix_flops_per_token(model, vocab_size, predicts) + attention_flops_per_token(model, context, predicts)


def matrix_flops_per_token(model: ModelSection, vocab_size: int, predicts: bool = True) -> float:
    """6 per active parameter in a matrix: 2 forward, and 2 for each of the two gradients.

    The head of a classifier, which runs once per text, is left out. Frozen parameters count like trained ones.
    """
    if isinstance(model, ClassifierSection):
        head = 6.0 * vocab_size * model.backbone.hidden_size
        return matrix_flops_per_token(model.backbone, vocab_size, predicts) - head
    if isinstance(model, DeepseekSection):
        return 6.0 * deepseek.matrix_parameters(model, vocab_size, predicts)
    return 6.0 * dense.matrix_parameters(model, vocab_size)


def attention_flops_per_token(model: ModelSection, context: int, predicts: bool = True) -> float:
    """Scores and weighted values, for the positions that a token attends to on average, (context + 1) / 2 if causal.

    Many published numbers count all of ``context`` and are about twice as large.
    """
    backbone = model.backbone_section
    if isinstance(backbone, DeepseekSection):
        return deepseek.attention_flops(backbone, context, predicts)
    return dense.attention_flops(backbone, context)
