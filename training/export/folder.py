"""A model directory as Hugging Face's libraries read it: config.json, safetensors, the tokenizer's files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from artefacts import publish
from tokenizer.load import CHARACTERS_NAME, JSON_NAME, MODEL_NAME, Tokenizer
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
        publish.rename_file(_partial(folder, number), folder / called)
        places |= dict.fromkeys(names, called)
    if not single:
        size = sum((folder / called).stat().st_size for called in set(places.values()))
        publish.write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def write_config(folder: Path, config: dict[str, Any], dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    """``config.json`` and ``generation_config.json``."""
    end = tokenizer.end_of_text_id
    ends = {"bos_token_id": tokenizer.first_id, "eos_token_id": end, "pad_token_id": None}
    publish.write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch."), **ends})
    publish.write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.first_id, "eos_token_id": end})


def write_tokenizer(folder: Path, made: Path, tokenizer: Tokenizer) -> str:
    """The tokenizer's files; returns what to say of them, empty: transformers reads them."""
    if (made / JSON_NAME).exists():
        for path in sorted(made.glob("*.json")):
            if path.name != "manifest.json":
                publish.write_bytes(folder / path.name, path.read_bytes())
        if not (folder / "tokenizer_config.json").exists():
            _write_tokenizer_config(folder, tokenizer)
        return ""
    if (made / CHARACTERS_NAME).exists():
        publish.write_text(folder / JSON_NAME, _of_characters(tokenizer))
        _write_tokenizer_config(folder, tokenizer)
        return ""
    publish.write_bytes(folder / MODEL_NAME, (made / MODEL_NAME).read_bytes())
    return f"{MODEL_NAME} is for SentencePiece itself: transformers' tokenizers do not read it as it was trained"


def _write_tokenizer_config(folder: Path, tokenizer: Tokenizer) -> None:
    end = tokenizer.piece(tokenizer.end_of_text_id)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "clean_up_tokenization_spaces": False}
    publish.write_json(folder / "tokenizer_config.json", config)


def _of_characters(tokenizer: Tokenizer) -> str:
    """A tokenizer of characters in the format of the library ``tokenizers``: a word a character."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    unknown = tokenizer.piece(tokenizer.unknown_id or 0)
    made = Tokenizer(models.WordLevel(pieces, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    reserved = [name for name, token in pieces.items() if tokenizer.is_reserved(token)]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in reserved])
    return json.dumps(json.loads(made.to_str()), ensure_ascii=False)
