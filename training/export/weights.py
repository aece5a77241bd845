"""A model's weights to and from their names on disk, a tensor at a time."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from artefacts.errors import RequestError
from configs.schema.models import ModelSection
from training.export.formats import table_of
from training.export.names import NameTable, Place

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
#: What weights may be in; anything else is quantized and means nothing without its scales.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_backbone(model: Any, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None = None) -> None:
    """Copy the weights of a backbone's own model, or of another classifier, into a classifier's backbone in place.

    Heads and modules of multi-token prediction are left out. Arguments and faults as of :func:`load_weights`.

    Raises:
        RequestError: also where there are more layers than the backbone has.
    """
    beyond: set[str] = set()
    predicting: set[str] = set()

    def kept() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            layer = _LAYER.match(name)
            if layer and int(layer[1]) >= len(model.model.layers):
                beyond.add(layer[1])
                predicting.update([layer[1]] if ".eh_proj." in name else [])
            elif name.startswith("model."):
                yield name, tensor

    _load(torch.nn.ModuleDict({"model": model.model}), table_of(model.section), kept(), experts)
    if beyond - predicting:
        last = max(map(int, beyond - predicting))
        raise RequestError(
            f"the weights hold layer {last}, where the backbone has {len(model.model.layers)}: set "
            "model.backbone.num_hidden_layers as they were trained"
        )


def load_weights(model: Any, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None = None) -> None:
    """Copy weights under their names on disk into a model in place, a tensor at a time; experts go into their stacks.

    Args:
        model: of a family; its ``section`` says by which table names are read.
        weights: (name on disk, tensor), as ``checkpoint.read_weights`` and released files have them.
        experts: those whose weights are needed; the others' are looked at and not copied.

    Raises:
        RequestError: a weight that the model does not have, or of another shape, or one that stays without a value.
    """
    _load(model, table_of(model.section), weights, experts)


@torch.no_grad()
def _load(
    model: torch.nn.Module, table: NameTable, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None
) -> None:
    targets = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    # What the table does not know, such as learned noise, our own checkpoints have under the name in memory.
    left = {name: len(table.on_disk(name, len(t))) if table.knows(name) else 1 for name, t in targets.items()}
    places: set[Place] = set()
    # Tied tensors are one in memory and may be two on disk.
    written: dict[int, str] = {}
    for name, tensor in weights:
        place = Place(name) if name in targets else table.in_memory(name)
        if place is None:
            continue
        found = targets.get(place.name)
        if found is None and _is_lacking(table, place, name, tensor):
            continue
        target = _target(found, place, name, tensor)
        if place in places:
            raise RequestError(f"the weights hold {name} twice: keep the files of one model alone")
        places.add(place)
        if (other := written.setdefault(id(found), place.name)) != place.name and not torch.equal(
            target, tensor.to(target)
        ):
            raise RequestError(
                f"the weights hold {name} and {other} with different values, where the model has one tensor for both: "
                "set model.tie_word_embeddings=false, in config.json too"
            )
        if place.expert is None or experts is None or place.expert in experts:
            target.copy_(tensor)
        # A stack under its name in memory is all of its parts.
        left[place.name] = 0 if place.expert is None else left[place.name] - 1
    filled = {id(targets[name]) for name, count in left.items() if count <= 0}
    _require_none_missing([name for name, count in left.items() if count > 0 and id(targets[name]) not in filled])


def _target(found: torch.Tensor | None, place: Place, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The view of a tensor in memory that takes one on disk.

    Raises:
        RequestError: the model has no such tensor, or of another shape, or the one on disk is quantized.
    """
    target = None if found is None or (place.expert or 0) >= len(found) else place.of(found)
    if target is None or target.shape != tensor.shape:
        has = "nothing" if target is None else f"shape {tuple(target.shape)}"
        message = f"the weights hold {name} of shape {tuple(tensor.shape)}, where the model has {has}"
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and target is not None:
            message += ": their vocabulary, or their width, is another than the recipe's"
        raise RequestError(message)
    if target.is_floating_point() and tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise RequestError(f"the weights hold {name} as {kind}: quantized weights are not read, convert them to bf16")
    return target


def _require_none_missing(names: Collection[str]) -> None:
    """Refuse weights that leave tensors of the model without a value, by the first of them."""
    if not names:
        return
    first = next(iter(names))
    cure = "they are incomplete, or of another model"
    if first == "lm_head.weight":
        cure = "if the embedding is the output head too, set model.tie_word_embeddings=true, in config.json too"
    raise RequestError(f"the weights lack {first} ({len(names)} missing in all): {cure}")


def _is_lacking(table: NameTable, place: Place, name: str, tensor: torch.Tensor) -> bool:
    """Whether a model without biases may pass over a tensor on disk, which is zeros then.

    Raises:
        RequestError: it is not.
    """
    if table.may_lack(place.name) and tensor.any():
        raise RequestError(f"the weights hold {name}, which is not zero, where the model has none: set model.bias=true")
    return table.may_lack(place.name)


def released_stream(
    section: ModelSection, weights: Iterable[tuple[str, torch.Tensor]], names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint's tensors under their names on disk, one at a time, as :func:`released_weights` gives a model's.

    Args:
        section: of the model.
        weights: (name in memory, or on disk already, tensor), as ``checkpoint.read_weights`` has them.
        names: all of their names.

    Raises:
        RequestError: the format cannot carry one.
    """
    table = table_of(section)
    layers: int = section.identity()["num_hidden_layers"]
    prediction = range(layers, layers + section.prediction_depth)
    for name, tensor in weights:
        for called, place in _places(table, name, len(tensor)):
            yield called, place.of(tensor)
        tied = name == "model.embed_tokens.weight" and "lm_head.weight" not in names
        for original in [name, *(["lm_head.weight"] if tied else [])]:
            for copy in table.copies_of(original, prediction):
                yield copy, tensor
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".weight") and bias not in names and table.may_lack(bias):
            yield table.on_disk(bias, 1)[0][0], tensor.new_zeros(len(tensor))


def released_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a model under its names on disk; experts as views of their stacks.

    Biases that the format has and the model lacks are zeros.

    Raises:
        RequestError: the format cannot carry one.
    """
    named = dict([*model.named_parameters(), *model.named_buffers()])
    # Tied embeddings stand once, under the embedding's name.
    return released_stream(model.section, named.items(), named)


def _places(table: NameTable, name: str, rows: int) -> list[tuple[str, Place]]:
    """What a tensor is called on disk; a part of a stack, which a checkpoint holds by itself, is so already."""
    if not table.knows(name) and table.reads(name):
        return [(name, Place(name))]
    return table.on_disk(name, rows)
