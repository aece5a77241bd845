"""Model FLOPs per token of a fine-tuning stage, which depend on what it trains."""

import math
from collections.abc import Mapping
from typing import Any

from configs.schema.finetune import FinetuneSection
from configs.schema.models import ModelSection
from training.estimate.finetuning import TABLES, adapter_size, trained_names
from training.estimate.parameter_shapes import Shape, parameter_shapes

#: Last parts of the names of a layer's modules, in the order of the computation.
_ORDER = (
    ("enorm", "hnorm"),
    ("eh_proj",),
    ("input_layernorm",),
    ("q_proj", "q_a_proj", "kv_a_proj_with_mqa", "qkv_proj"),
    ("q_a_layernorm", "kv_a_layernorm"),
    ("q_b_proj", "kv_b_proj"),
    ("scores",),
    ("o_proj",),
    ("post_attention_layernorm",),
    ("gate", "noise", "gate_proj", "up_proj", "gate_up_proj"),
    ("down_proj",),
    ("norm",),
)
_PLACES = {name: place for place, names in enumerate(_ORDER) for name in names}
_EMBEDDINGS, _POSITIONS, _HEAD = TABLES
#: A parameter's place in the computation: its layer, and the place in the layer.
_Place = tuple[float, int]


def matrix_flops(model: ModelSection, vocab_size: int, predicts: bool, stage: FinetuneSection) -> float:
    """Return matrix FLOPs per token, including adapters: per use of a parameter, 2 forward and 2 for each gradient.

    A frozen matrix needs no gradient of its weights. Nothing needs a gradient of its inputs if no parameter before it
    is trained.
    """
    shapes = dict(parameter_shapes(model, vocab_size))
    trained, first, flops = trained_names(shapes, stage), _first_trained(model, shapes, stage), 0.0
    for name, shape in shapes.items():
        uses = _uses(model, name, predicts) if len(shape) > 1 else 0.0
        backward = first < _place(model, _HEAD if name == _EMBEDDINGS else name)
        flops += 2 * uses * math.prod(shape) * (1 + backward + (name in trained))
        if stage.lora and adapter_size(stage.lora, name, shape):
            *copies, outputs, inputs = shape
            # The product with A has the gradient of its inputs only if the layer's own product has it.
            widths = inputs * (2 + backward) + outputs * 3
            flops += 2 * uses * math.prod(copies) * stage.lora.rank * widths
    return flops


def attention_fraction(model: ModelSection, predicts: bool, stage: FinetuneSection) -> float:
    """Return the stage's attention FLOPs as a fraction of those of training all parameters.

    A third is the forward pass. The layers before the first trained parameter have no backward pass.
    """
    first = _first_trained(model, dict(parameter_shapes(model, 1)), stage)  # tables have no part in attention
    layers = _layers(model) + (model.prediction_depth if predicts else 0)
    backward = sum(first < (layer, _PLACES["scores"]) for layer in range(layers))
    return (1 + 2 * backward / max(1, layers)) / 3


def _uses(model: Any, name: str, predicts: bool) -> float:
    """Return how often a token is multiplied by a matrix, on average over the experts of a layer."""
    passes = 1 + (model.prediction_depth if predicts else 0)
    if name in (_HEAD, _EMBEDDINGS):
        return passes if name == _HEAD or getattr(model, "tie_word_embeddings", False) else 0.0
    layer = _place(model, name)[0]
    if name == _POSITIONS or (layer >= _layers(model) and not predicts):
        return 0.0
    return model.num_experts_per_tok / model.n_routed_experts if ".experts." in name else 1.0


def _first_trained(model: ModelSection, shapes: Mapping[str, Shape], stage: FinetuneSection) -> _Place:
    """Return the place of the first parameter or adapter that is trained."""
    names = trained_names(shapes, stage)
    if stage.lora:
        names |= {name for name, shape in shapes.items() if adapter_size(stage.lora, name, shape)}
    return min((_place(model, name) for name in names), default=(math.inf, 0))


def _place(model: ModelSection, name: str) -> _Place:
    if name in TABLES:
        return (math.inf, 0) if name == _HEAD else (-1, 0)
    module, _, _ = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    place = _PLACES[module.rpartition(".")[2]]
    # The last norm belongs to no layer. It comes before the prediction modules.
    layer = _layers(model) - 1 if module == "model.norm" else int(module.split(".")[2])
    return layer, place


def _layers(model: Any) -> int:
    return getattr(model, "num_hidden_layers", 0)
