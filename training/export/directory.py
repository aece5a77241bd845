"""The weights of a model directory in Hugging Face's layout: which files hold them, and what is in these."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from artefacts.errors import RequestError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
#: Behind the name of a file that is divided: where each tensor is.
INDEX = ".index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, chosen as transformers does.

    A single file comes before the files of an index, safetensors before the older pickled ones. Other files are not
    looked at, so a file left over from elsewhere is not mixed in. Without any of these names every .safetensors counts.

    Raises:
        RequestError: there is none, or the index is damaged or names a file that is not there.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return _indexed(folder / (name + INDEX))
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise RequestError(f"{folder}: neither .safetensors nor {PICKLED} is there")
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{index}: cannot be read ({error!r}): copy it again") from None
    if missing := [path.name for path in files if not path.is_file()]:
        raise RequestError(
            f"{index.parent}: {missing[0]} is not there, which {index.name} names "
            f"({len(missing)} of {len(files)} files missing): copy the directory again"
        )
    return files


def weights_in(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor of a model directory, one at a time.

    Raises:
        RequestError: there is none, or a file is damaged.
    """
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with _damage_named(path), safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    yield name, opened.get_tensor(name)
        else:
            yield from _pickled(path).items()


def names_in(folder: Path) -> set[str]:
    """The names of all tensors of a model directory; their values are not read.

    Raises:
        RequestError: as of :func:`weights_in`.
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
    """The older kind of file, from which only tensors are taken."""
    with _damage_named(path):
        # The oldest ones, GPT-2's among them, are no zip files and cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise RequestError(f"{path}: not a table of tensors by name")
    return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries' own classes, and Rust's panics
        raise RequestError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from None
