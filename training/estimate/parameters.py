"""Total and active parameter counts, for a model of any family."""

from configs.schema.models import ModelSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek, dense
from training.estimate.counts import Parameters


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count parameters by part, for an embedding and head with ``vocab_size`` rows."""
    if isinstance(model, ClassifierSection):
        return _classifier(model, vocab_size)
    if isinstance(model, DeepseekSection):
        return deepseek.parameters(model, vocab_size)
    return dense.parameters(model, vocab_size)


def _classifier(model: ClassifierSection, vocab_size: int) -> Parameters:
    """Count the parameters, frozen or not, of a backbone whose head is replaced by a classification head."""
    backbone, hidden = parameters(model.backbone, vocab_size), model.backbone.hidden_size
    table, head = vocab_size * hidden, model.classes * (hidden + 1)
    by_part = {part: count for part, count in backbone.by_part.items() if part != "head"}
    # If the backbone's embedding is tied, it was counted as the head.
    by_part = {**by_part, "embedding": table, "classes": head}
    active = {part: count for part, count in backbone.active_by_part.items() if part in by_part}
    return Parameters(
        by_part,
        {**active, "embedding": 0, "classes": head},
        table + by_part.get("positions", 0) + model.classes * hidden,
        router_biases=backbone.router_biases,
    )
