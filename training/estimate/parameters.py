"""Parameters of a model of any family, and those that are active per token."""

from configs.schema.models import ModelSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense
from training.estimate.counts import Parameters


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count by part for a model whose embedding and head have ``vocab_size`` rows."""
    if isinstance(model, ClassifierSection):
        return _classifier(model, vocab_size)
    if isinstance(model, DeepseekSection):
        return deepseek.parameters(model, vocab_size)
    return dense.parameters(model, vocab_size)


def _classifier(model: ClassifierSection, vocab_size: int) -> Parameters:
    """The backbone with a head over classes in place of its own; frozen parameters count like trained ones."""
    backbone, hidden = parameters(model.backbone, vocab_size), model.backbone.hidden_size
    table, head = vocab_size * hidden, model.classes * (hidden + 1)
    by_part = {part: count for part, count in backbone.by_part.items() if part != "head"}
    # If the backbone is tied, its embedding counts as its head.
    by_part = {**by_part, "embedding": table, "classes": head}
    active = {part: count for part, count in backbone.active_by_part.items() if part in by_part}
    return Parameters(
        by_part,
        {**active, "embedding": 0, "classes": head},
        table + by_part.get("positions", 0) + model.classes * hidden,
        router_biases=backbone.router_biases,
    )
