"""Writes a model directory for Hugging Face libraries: config.json, safetensors and tokenizer files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from artefacts import atomic, manifest
from tokenizer import released
from tokenizer.base import JSON_NAME, MODEL_NAME, Tokenizer
from tokenizer.chat_template import ChatTemplate
from tokenizer.huggingface import CONFIG_NAME
from training.checkpoint import tensor_file

#: Approximate size of a weight file in bytes.
_FILE_BYTES = 5 * 10**9
_INDEX = "model.safetensors.index.json"
#: File with a chat template, which transformers reads.
TEMPLATE_NAME = "chat_template.jinja"


def write_weights(folder: Path, weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> int:
    """Write named tensors to one file, or to several if they are large. Returns the total number of elements.

    Weights are written in ``dtype``, except router biases, which stay in fp32. At most one file's worth of tensors is
    held in memory.
    """
    files: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    size = total = 0
    for name, tensor in weights:
        kept = name.endswith("e_score_correction_bias")
        # A view of a stack would keep the entire stack in memory.
        waiting[name] = tensor.detach().to(torch.float32 if kept else dtype).clone().contiguous()
        size, total = size + waiting[name].nbytes, total + tensor.numel()
        if size >= _FILE_BYTES:
            files.append(_flush(folder, len(files), waiting))
            waiting, size = {}, 0
    if waiting or not files:
        files.append(_flush(folder, len(files), waiting))
    _rename(folder, files)
    return total


def _flush(folder: Path, number: int, waiting: dict[str, torch.Tensor]) -> list[str]:
    # Do not use the safetensors library: its files are readable only by their owner, regardless of the umask.
    tensor_file.write(_partial(folder, number), waiting, {"format": "pt"})
    return list(waiting)


def _partial(folder: Path, number: int) -> Path:
    return folder / f".weights-{number:05d}.partial"


def _rename(folder: Path, files: list[list[str]]) -> None:
    """Rename a single file to ``model.safetensors``, or number several files and write an index of their tensors."""
    single = len(files) == 1
    files_by_name: dict[str, str] = {}
    for number, names in enumerate(files):
        file_name = "model.safetensors" if single else f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        atomic.rename_file(_partial(folder, number), folder / file_name)
        files_by_name |= dict.fromkeys(names, file_name)
    if not single:
        size = sum((folder / file_name).stat().st_size for file_name in set(files_by_name.values()))
        atomic.write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": files_by_name})


def write_config(
    folder: Path, config: dict[str, Any], dtype: torch.dtype, tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> None:
    """Write ``config.json`` and ``generation_config.json``, both with the stop tokens of the tokenizer and template."""
    ends = sorted(template.stop_ids if template else tokenizer.stop_ids)
    tokens = {
        "bos_token_id": tokenizer.first_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id if tokenizer.has_chat_tokens else None,
    }
    atomic.write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch."), **tokens})
    atomic.write_json(folder / "generation_config.json", tokens)


def write_tokenizer(folder: Path, source: Path, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
    """Write the tokenizer files that transformers reads, and the SentencePiece model if there is one.

    Args:
        folder: the export's folder.
        source: the run's tokenizer folder.
        tokenizer: the tokenizer.
        template: the chat template that the weights were fine-tuned with, or None.
    """
    if template is not None:
        atomic.write_text(folder / TEMPLATE_NAME, template.exported())
    if (source / JSON_NAME).exists():
        for path in sorted(source.glob("*.json")):
            if path.name != manifest.NAME:
                atomic.write_bytes(folder / path.name, path.read_bytes())
    else:
        atomic.write_text(folder / JSON_NAME, released.tokenizer_json(tokenizer))
    if (source / MODEL_NAME).exists():
        atomic.write_bytes(folder / MODEL_NAME, (source / MODEL_NAME).read_bytes())
    if not (folder / CONFIG_NAME).exists():
        atomic.write_json(folder / CONFIG_NAME, released.tokenizer_config(tokenizer))
