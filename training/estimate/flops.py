"""Model FLOPs per training token: what the math requires, not what an implementation executes."""

from configs.schema.finetune import FinetuneSection
from configs.schema.models import ModelSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense, finetuning_flops


def flops_per_token(
    model: ModelSection, vocab_size: int, context: int, predicts: bool = True, stage: FinetuneSection | None = None
) -> float:
    """Return forward plus backward FLOPs per token, averaged over a sequence of ``context`` tokens.

    A multiply-add counts as two FLOPs. Norms, rotations, softmax and recomputation by activation checkpointing are not
    counted. For an encoder-decoder, the result is per target token, for a source as long as the target. If
    ``predicts``, multi-token prediction modules are counted. ``stage`` is the fine-tuning stage that determines what is
    trained, or None if everything is.
    """
    matrices = matrix_flops_per_token(model, vocab_size, predicts, stage)
    return matrices + attention_flops_per_token(model, context, predicts, stage)


def matrix_flops_per_token(
    model: ModelSection, vocab_size: int, predicts: bool = True, stage: FinetuneSection | None = None
) -> float:
    """Return matrix FLOPs per token: 6 per active parameter (2 forward, and 2 for each of the two gradients).

    A classifier's head, which runs once per text, is not counted. A classifier's frozen backbone counts like a trained
    one. With ``stage``, only gradients that the stage needs are counted.
    """
    if stage:
        return finetuning_flops.matrix_flops(model, vocab_size, predicts, stage)
    if isinstance(model, ClassifierSection):
        head = 6.0 * vocab_size * model.backbone.hidden_size
        return matrix_flops_per_token(model.backbone, vocab_size, predicts) - head
    if isinstance(model, DeepseekSection):
        return 6.0 * deepseek.matrix_parameters(model, vocab_size, predicts)
    return 6.0 * dense.matrix_parameters(model, vocab_size)


def attention_flops_per_token(
    model: ModelSection, context: int, predicts: bool = True, stage: FinetuneSection | None = None
) -> float:
    """Return the FLOPs of attention scores and weighted values per token.

    The result is for the average number of positions that a token attends to, which is (context + 1) / 2 for causal
    attention. Many published numbers count all ``context`` positions and are about twice as large.
    """
    if stage:
        full = attention_flops_per_token(model, context, predicts)
        return full * finetuning_flops.attention_fraction(model, predicts, stage)
    backbone = model.backbone_section
    if isinstance(backbone, DeepseekSection):
        return deepseek.attention_flops(backbone, context, predicts)
    return dense.attention_flops(backbone, context)
