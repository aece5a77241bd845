"""A model directory as Hugging Face's libraries read it: config.json, safetensors, the tokenizer's files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from artefacts import atomic
from tokenizer import released
from tokenizer.base import JSON_NAME, MODEL_NAME, Tokenizer
from tokenizer.huggingface import CONFIG_NAME
from training.checkpoint import tensor_file

#: Bytes of a file of weights, about.
_FILE_BYTES = 5 * 10**9
_INDEX = "model.safetensors.index.json"


def write_weights(folder: Path, weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> int:
    """Write tensors under their names, in several files where they are large; returns how many numbers there are.

    ``dtype``: of the weights; what stands beside them in fp32, such as a router's bias, keeps that. No more than a
    file's worth is held at a time.
    """
    files: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    size = total = 0
    for name, tensor in weights:
        kept = name.endswith("e_score_correction_bias")
        # A view of a stack would bring all of it along.
        waiting[name] = tensor.detach().to(torch.float32 if kept else dtype).clone().contiguous()
        size, total = size + waiting[name].nbytes, total + tensor.numel()
        if size >= _FILE_BYTES:
            files.append(_flush(folder, len(files), waiting))
            waiting, size = {}, 0
    if waiting or not files:
        files.append(_flush(folder, len(files), waiting))
    _give_names(folder, files)
    return total


def _flush(folder: Path, number: int, waiting: dict[str, torch.Tensor]) -> list[str]:
    # Not by the library: its files can be read by their owner alone, whatever the umask says.
    tensor_file.write(_partial(folder, number), waiting, {"format": "pt"})
    return list(waiting)


def _partial(folder: Path, number: int) -> Path:
    return folder / f".weights-{number:05d}.partial"


def _give_names(folder: Path, files: list[list[str]]) -> None:
    """One file is ``model.safetensors``; several are numbered, and an index says what is where."""
    single = len(files) == 1
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        called = "model.safetensors" if single else f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        atomic.rename_file(_partial(folder, number), folder / called)
        places |= dict.fromkeys(names, called)
    if not single:
        size = sum((folder / called).stat().st_size for called in set(places.values()))
        atomic.write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def write_config(folder: Path, config: dict[str, Any], dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    """``config.json`` and ``generation_config.json``; generation ends at the tokens at which it ends here."""
    ends = sorted(tokenizer.stop_ids)
    tokens = {
        "bos_token_id": tokenizer.first_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id if tokenizer.has_chat_tokens else None,
    }
    atomic.write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch."), **tokens})
    atomic.write_json(folder / "generation_config.json", tokens)


def write_tokenizer(folder: Path, made: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer's files as transformers reads them; SentencePiece's own model stays beside them."""
    if (made / JSON_NAME).exists():
        for path in sorted(made.glob("*.json")):
            if path.name != "manifest.json":
                atomic.write_bytes(folder / path.name, path.read_bytes())
    else:
        atomic.write_text(folder / JSON_NAME, released.tokenizer_json(tokenizer))
    if (made / MODEL_NAME).exists():
        atomic.write_bytes(folder / MODEL_NAME, (made / MODEL_NAME).read_bytes())
    if not (folder / CONFIG_NAME).exists():
        atomic.write_json(folder / CONFIG_NAME, released.tokenizer_config(tokenizer))
