"""Reads the weights of a model directory in Hugging Face's layout."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from artefacts.errors import RequestError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
#: Suffix of the index file of sharded weights, which maps tensors to files.
INDEX = ".index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model directory, chosen in the same order of preference as in transformers.

    A single file takes precedence over an index, and safetensors over older pickled files. Other files are ignored, so
    that a leftover file is not loaded by mistake. If no file has one of these names, every .safetensors file is read.

    Raises:
        RequestError: there are no weights, or the index is damaged or names a missing file.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return _indexed(folder / (name + INDEX))
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise RequestError(f"{folder}: there is neither a .safetensors file nor {PICKLED}")
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{index}: cannot be read ({error!r}): copy it again") from None
    if missing := [path.name for path in files if not path.is_file()]:
        raise RequestError(
            f"{index.parent}: {missing[0]} is missing, which {index.name} names "
            f"({len(missing)} of {len(files)} files are missing): copy the directory again"
        )
    return files


def weights_in(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for every tensor in a model directory, one at a time.

    Raises:
        RequestError: there are no weights, or a file is damaged.
    """
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with _damage_named(path), safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    yield name, opened.get_tensor(name)
        else:
            yield from _pickled(path).items()


def names_in(folder: Path) -> set[str]:
    """Return the names of all tensors in a model directory, without reading their values.

    Raises:
        RequestError: as for :func:`weights_in`.
    """
    names: set[str] = set()
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with _damage_named(path), safe_open(path, framework="pt") as opened:
                names.update(opened.keys())
        else:
            names.update(_pickled(path))
    return names


def _pickled(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickled file, without loading anything else in it."""
    with _damage_named(path):
        # The oldest files, such as GPT-2's, are not zip files and cannot be memory-mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise RequestError(f"{path}: not a table of tensors by name")
    return tensors


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries raise exceptions of their own, including Rust panics
        raise RequestError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from None
