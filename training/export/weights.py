"""Loads and saves a model's weights under their names on disk, one tensor at a time."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from artefacts.errors import RequestError
from configs.schema.models import ModelSection
from training.export.formats import table_of
from training.export.names import NameTable, Place

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
#: Supported dtypes of weights. Weights of any other dtype are quantized, and meaningless without their scales.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_backbone(model: Any, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None = None) -> None:
    """Copy the weights of a language model or another classifier into a classifier's backbone, in place.

    Heads and multi-token prediction layers are skipped. The arguments are the same as for :func:`load_weights`.

    Raises:
        RequestError: as for :func:`load_weights`, or the weights have more layers than the backbone.
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
            f"the weights have a layer {last}, but the backbone has {len(model.model.layers)} layers: set "
            "model.backbone.num_hidden_layers to the value they were trained with"
        )


def load_weights(model: Any, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None = None) -> None:
    """Copy weights with on-disk names into a model in place, one tensor at a time, and stack the experts.

    Args:
        model: a model of any family. Its ``section`` determines the name table.
        weights: pairs (name on disk, tensor), as from ``checkpoint.read_weights`` or released files.
        experts: the experts whose weights are needed, or None for all of them. The others are checked but not copied.

    Raises:
        RequestError: the model lacks one of the weights, has it in a different shape, or has a tensor that the weights
            do not provide.
    """
    _load(model, table_of(model.section), weights, experts)


@torch.no_grad()
def _load(
    model: torch.nn.Module, table: NameTable, weights: Iterable[tuple[str, torch.Tensor]], experts: range | None
) -> None:
    targets = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    # Tensors that the table has no name for, such as learned noise, keep their in-memory names in our checkpoints.
    missing = {name: len(table.on_disk(name, len(t))) if table.knows(name) else 1 for name, t in targets.items()}
    places: set[Place] = set()
    # Tied tensors are a single tensor in memory but may be two on disk.
    written: dict[int, str] = {}
    for name, tensor in weights:
        place = Place(name) if name in targets else table.in_memory(name)
        if place is None:
            continue
        destination = targets.get(place.name)
        if destination is None and _is_absent_bias(table, place, name, tensor):
            continue
        target = _target(destination, place, name, tensor)
        if place in places:
            raise RequestError(f"the weights have {name} twice: keep only the files of one model")
        places.add(place)
        if (other := written.setdefault(id(destination), place.name)) != place.name and not torch.equal(
            target, tensor.to(target)
        ):
            raise RequestError(
                f"the weights have different values for {name} and {other}, but the model has one tensor for both: set "
                "model.tie_word_embeddings=false, in config.json too"
            )
        if place.expert is None or experts is None or place.expert in experts:
            target.copy_(tensor)
        # A stack stored under its in-memory name provides all of its parts.
        missing[place.name] = 0 if place.expert is None else missing[place.name] - 1
    filled = {id(targets[name]) for name, count in missing.items() if count <= 0}
    _require_none_missing([name for name, count in missing.items() if count > 0 and id(targets[name]) not in filled])


def _target(destination: torch.Tensor | None, place: Place, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the view of the in-memory tensor into which an on-disk tensor is copied.

    Raises:
        RequestError: the model has no such tensor or has it in a different shape, or the tensor on disk is quantized.
    """
    target = None if destination is None or (place.expert or 0) >= len(destination) else place.of(destination)
    if target is None or target.shape != tensor.shape:
        has = "no such tensor" if target is None else f"shape {tuple(target.shape)}"
        message = f"the weights have {name} of shape {tuple(tensor.shape)}, but the model has {has}"
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and target is not None:
            message += ": the recipe has a different vocabulary or hidden size"
        raise RequestError(message)
    if target.is_floating_point() and tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise RequestError(
            f"the weights have {name} as {kind}: quantized weights are not supported, convert them to bf16"
        )
    return target


def _require_none_missing(names: Collection[str]) -> None:
    """Reject weights that lack some of the model's tensors. The message names the first one."""
    if not names:
        return
    first = next(iter(names))
    fix = "they are incomplete or belong to a different model"
    if first == "lm_head.weight":
        fix = "if the head shares the embedding's matrix, set model.tie_word_embeddings=true, in config.json too"
    raise RequestError(f"the weights lack {first} ({len(names)} missing in total): {fix}")


def _is_absent_bias(table: NameTable, place: Place, name: str, tensor: torch.Tensor) -> bool:
    """Return whether a tensor on disk is an all-zero bias, which a model without biases can skip.

    Raises:
        RequestError: the tensor is a bias but not all zeros.
    """
    if table.may_lack(place.name) and tensor.any():
        raise RequestError(
            f"the weights have {name}, which is not zero, but the model has no biases: set model.bias=true"
        )
    return table.may_lack(place.name)


def released_stream(
    section: ModelSection, weights: Iterable[tuple[str, torch.Tensor]], names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a checkpoint's tensors under their names on disk, one at a time.

    This is :func:`released_weights` for a checkpoint instead of a model.

    Args:
        section: the model section.
        weights: pairs (name, tensor), as from ``checkpoint.read_weights``. Names may be in-memory or on-disk names.
        names: the names of all these weights.

    Raises:
        RequestError: the format does not have one of the tensors.
    """
    table = table_of(section)
    layers: int = section.identity()["num_hidden_layers"]
    prediction = range(layers, layers + section.prediction_depth)
    for name, tensor in weights:
        for on_disk, place in _places(table, name, len(tensor)):
            yield on_disk, place.of(tensor)
        tied = name == "model.embed_tokens.weight" and "lm_head.weight" not in names
        for original in [name, *(["lm_head.weight"] if tied else [])]:
            for copy in table.copies_of(original, prediction):
                yield copy, tensor
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".weight") and bias not in names and table.may_lack(bias):
            yield table.on_disk(bias, 1)[0][0], tensor.new_zeros(len(tensor))


def released_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's parameters and buffers under their names on disk, with experts as views of their stacks.

    Biases that the format has but the model lacks are yielded as zeros.

    Raises:
        RequestError: the format does not have one of the tensors.
    """
    named = dict([*model.named_parameters(), *model.named_buffers()])
    # Tied embeddings appear once, under the name of the embedding.
    return released_stream(model.section, named.items(), named)


def _places(table: NameTable, name: str, rows: int) -> list[tuple[str, Place]]:
    """Return a tensor's names on disk. Checkpoints store experts separately, already under their on-disk names."""
    if not table.knows(name) and table.reads(name):
        return [(name, Place(name))]
    return table.on_disk(name, rows)
