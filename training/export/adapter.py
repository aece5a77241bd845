"""Adapters in the peft library's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

peft replaces linear layers (``target_modules``) or wraps parameters (``target_parameters``). In a mixture of experts,
peft 0.21 takes target modules named ``gate_proj``, ``up_proj`` and ``down_proj`` for routed experts, even if they are
dense layers or shared experts. The format therefore targets the weights of such layers, which rules out DoRA. The
routed experts' adapters are one matrix per stack: ``lora_A`` [E * r, in] and ``lora_B`` [out, r * E].
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from artefacts import atomic
from artefacts.errors import RequestError
from configs.schema.adapter import LoraSection
from configs.schema.models import ModelSection
from training.adapter_names import EXPERT_ADAPTERS, MAGNITUDE, A, B, is_adapter
from training.checkpoint import tensor_file
from training.export.directory import weights_in
from training.export.formats import table_of
from training.layers.adapters.attach import load_adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERTS = re.compile(rf"(model\.layers\.\d+)\.{EXPERT_ADAPTERS}\.(\w+)")
#: Names of our adapters' parameters -> names in peft's files.
_FACTORS = {A: "lora_A.weight", B: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}


def in_main_model(section: ModelSection, name: str) -> bool:
    """Return whether a parameter belongs to the main model, and not to a prediction layer, which peft cannot adapt."""
    layer = _LAYER.match(name)
    return layer is None or int(layer[1]) < section.identity()["num_hidden_layers"]


def write_adapter(
    folder: Path, section: ModelSection, lora: LoraSection, adapters: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write adapters in peft's format, in fp32.

    Args:
        folder: the folder to create.
        section: the model's section.
        lora: the settings that the adapters were trained with.
        adapters: pairs (name, tensor), as from ``checkpoint.read_adapters``. Prediction layers are skipped.

    Raises:
        RequestError: peft's format does not support the adapters.
    """
    named = {name: tensor for name, tensor in adapters if in_main_model(section, name)}
    folder.mkdir()
    tensors = {_peft_name(section, name): _peft_tensor(name, tensor) for name, tensor in named.items()}
    tensor_file.write(folder / WEIGHTS, tensors, {"format": "pt"})
    atomic.write_json(folder / CONFIG, adapter_config(section, lora, named))


def adapter_config(section: ModelSection, lora: LoraSection, names: Iterable[str]) -> dict[str, Any]:
    """Return peft's configuration for adapters with these names.

    Raises:
        RequestError: the adapters use DoRA on layers for which peft has no DoRA.
    """
    fused = section.identity()["family"] == "gpt"  # GPT-2's matrices are transposed, as peft expects for fan_in_fan_out
    modules: set[str] = set()
    parameters: set[str] = set()
    for adapter in {name.rpartition(".")[0] for name in names}:
        target = _without_layer(_target(section, adapter))
        is_module = fused or ".self_attn." in adapter
        (modules if is_module else parameters).add(target)
    if lora.dora and parameters:
        raise RequestError(
            "peft has no DoRA for the feed-forward layers of a mixture of experts: set export.merge=true to export the "
            "merged weights"
        )
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": lora.dora,
        "use_rslora": False,
        "fan_in_fan_out": fused,
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
    }


def _target(section: ModelSection, adapter: str) -> str:
    """Return the name of an adapted module or, where peft wraps parameters, of the parameter, in transformers."""
    if experts := _EXPERTS.fullmatch(adapter):
        return f"{experts[1]}.mlp.experts.{experts[2]}"
    weight = table_of(section).on_disk(f"{adapter}.weight", 1)[0][0]
    family = section.identity()["family"]
    return weight.removesuffix(".weight") if family == "gpt" or ".self_attn." in adapter else weight


def _without_layer(target: str) -> str:
    """Return the part of a name after the layer's number."""
    return re.sub(r"^.*?\.\d+\.", "", target)


def _peft_name(section: ModelSection, name: str) -> str:
    adapter, _, factor = name.rpartition(".")
    if experts := _EXPERTS.fullmatch(adapter):
        # peft wraps the module once per parameter, in the order of the parameters.
        inner = ".base_layer" if experts[2] == "gate_up_proj" else ""
        return f"{_PREFIX}{experts[1]}.mlp.experts{inner}.{_FACTORS[factor]}"
    return f"{_PREFIX}{_target(section, adapter).removesuffix('.weight')}.{_FACTORS[factor]}"


def _peft_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 3:
        flat = tensor.flatten(0, 1) if name.endswith(f".{A}") else tensor.permute(1, 2, 0).flatten(1)
        return flat.float().contiguous()
    return tensor.float().contiguous()


def read_adapter(
    folder: Path,
    section: ModelSection,
    lora: LoraSection,
    shapes: Mapping[str, torch.Size],
    key: str = "finetune.lora",
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an adapter in peft's format under our names.

    Args:
        folder: the adapter's folder.
        section: the model's section.
        lora: the settings that the adapter must have.
        shapes: names and shapes of the parameters of the model's adapters. Those of prediction layers are skipped.
        key: dotted key of the settings, for messages.

    Raises:
        RequestError: there is no adapter, it is damaged, or it belongs to another model or has other settings.
    """
    _require_settings(folder, lora, key)
    tensors = dict(weights_in(folder))
    for name, shape in shapes.items():
        if not in_main_model(section, name):
            continue
        theirs = _peft_name(section, name)
        wanted = tuple(_peft_tensor(name, torch.empty(shape, device="meta")).shape)
        has = tuple(tensors[theirs].shape) if theirs in tensors else "missing"
        if has != wanted:
            raise RequestError(
                f"{folder} is an adapter of another model or of other layers: {theirs} is {has}, for this recipe it is "
                f"{wanted}"
            )
        yield name, _our_tensor(name, shape, tensors.pop(theirs))
    if tensors:
        raise RequestError(
            f"{folder} is an adapter of another model or of other layers: {next(iter(tensors))} has no place in the "
            f"recipe's model with {key}.targets"
        )


def adapter_loader(section: ModelSection, lora: LoraSection | None, key: str) -> Callable[[Any], None] | None:
    """Return a function that loads the adapter ``finetune.lora.adapter`` into a model, or None if there is none.

    ``key`` is the dotted key of ``lora``, for messages. The function raises ``RequestError`` as :func:`read_adapter`
    does.
    """
    if lora is None or lora.adapter is None:
        return None
    folder = Path(lora.adapter)

    def load(model: Any) -> None:
        adapters = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
        weights = dict(read_adapter(folder, section, lora, {name: p.shape for name, p in adapters.items()}, key))
        # The adapters of prediction layers, which peft's format lacks, stay as they are.
        load_adapters(model, {**adapters, **weights}.items())

    return load


def _require_settings(folder: Path, lora: LoraSection, key: str) -> None:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(settings, dict)
    except (OSError, ValueError, AssertionError):
        raise RequestError(
            f"{key}.adapter={folder}: no {CONFIG} can be read: name a folder that peft saved an adapter in"
        ) from None
    keys = {"r": ("rank", lora.rank), "lora_alpha": ("alpha", lora.alpha), "use_dora": ("dora", lora.dora)}
    for name, (ours, wanted) in keys.items():
        if settings.get(name, False) != wanted:
            raise RequestError(f"{folder}: {name} is {settings.get(name)}: set {key}.{ours} to that, not {wanted}")
    for name, supported in {"peft_type": "LORA", "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}.items():
        if (value := settings.get(name)) not in (supported, None):
            raise RequestError(f"{folder}: {name} is {value}, but only {supported} is supported")


def _our_tensor(name: str, shape: torch.Size, tensor: torch.Tensor) -> torch.Tensor:
    if len(shape) < 3:
        return tensor
    experts, rows, columns = shape
    return tensor.view(shape) if name.endswith(f".{A}") else tensor.view(rows, columns, experts).permute(2, 0, 1)
