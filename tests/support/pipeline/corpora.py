"""Small corpora, and recipes over them."""

import csv
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import zstandard

from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.paths import CHECKOUT

RECIPE = CHECKOUT / "configs" / "demo.yaml"

_SYLLABLES = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "or")]


def texts(count: int, seed: int = 0, sentences: int = 12) -> list[str]:
    """Documents of random words. Almost surely, no two documents share a run of eight words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(1500)]
    documents = []
    for _ in range(count):
        lines = [" ".join(rng.choices(words, k=rng.randint(5, 14))).capitalize() + "." for _ in range(sentences)]
        documents.append("\n".join(lines))
    return documents


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def overrides(root: Path, *more: str) -> list[str]:
    return [
        f"run.root={root}",
        "data.source.sample_bytes=null",
        "data.workers=1",
        "tokenizer.vocab_size=400",
        "data.tokens.validation_fraction=0.05",
        *more,
    ]


def recipe(root: Path, *more: str) -> Recipe:
    """The demo recipe, made small. Later overrides have priority."""
    return load_recipe(RECIPE, overrides(root, *more))


def of_jsonl(root: Path, path: Path, *more: str) -> Recipe:
    return recipe(root, "data.source.kind=jsonl", f"data.source.path={path}", *more)


#: Pages of an inner archive of OpenWebText's layouts, rows of a data file of the others.
_PAGES = 7
_CONFIG = """---
configs:
- config_name: plain_text
  default: true
  data_files:
  - split: train
    path: plain_text/train-*
---
# A corpus
"""


def packed(content: bytes, name: str) -> bytes:
    """Content compressed for a file of that name."""
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    if name.endswith(".xz"):
        return lzma.compress(content)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content) if name.endswith(".zst") else content


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A plain tar of (name, content) files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pages(documents: list[str], first: int = 0) -> list[tuple[str, bytes]]:
    """OpenWebText's pages: ``NNNNNNN-<md5>.txt``."""
    contents = [text.encode() for text in documents]
    return [(f"{n:07d}-{hashlib.md5(page).hexdigest()}.txt", page) for n, page in enumerate(contents, first)]


def subsets(documents: list[str]) -> list[tuple[str, bytes]]:
    """OpenWebText's inner archives, ``urlsf_subsetNN-M_data.xz``, in order of name."""
    groups = [documents[at : at + _PAGES] for at in range(0, len(documents), _PAGES)]
    names = [f"urlsf_subset{n // 10:02d}-{n % 10}_data.xz" for n in range(len(groups))]
    archives = zip(names, (tar_of(pages(group, n * _PAGES)) for n, group in enumerate(groups)), strict=True)
    return [(name, lzma.compress(content, preset=0)) for name, content in archives]


def _tables(documents: list[str]) -> list[pyarrow.Table]:
    return [pyarrow.table({"text": documents[at : at + 3 * _PAGES]}) for at in range(0, len(documents), 3 * _PAGES)]


def write_hub(documents: list[str], folder: Path) -> Path:
    """A dataset repository with the layout of Skylion007/openwebtext, with row groups of two rows."""
    tables = _tables(documents)
    (folder / "plain_text").mkdir(parents=True)
    (folder / "README.md").write_text(_CONFIG)
    for number, table in enumerate(tables):
        name = f"train-{number:05d}-of-{len(tables):05d}.parquet"
        parquet.write_table(table, folder / "plain_text" / name, row_group_size=2)
    return folder


def _write_tar_xz(documents: list[str], folder: Path) -> Path:
    inner = [(f"openwebtext/{name}", content) for name, content in subsets(documents)]
    inner.append(("openwebtext/urlsf_subset00-0_data.xz.lock", b""))
    (folder / "openwebtext.tar.xz").write_bytes(lzma.compress(tar_of(inner), preset=0))
    return folder / "openwebtext.tar.xz"


def _write_folder(documents: list[str], folder: Path) -> Path:
    for name, content in [*subsets(documents), ("urlsf_subset00-0_data.xz.lock", b"")]:
        (folder / name).write_bytes(content)
    return folder


def _write_subsets(documents: list[str], folder: Path) -> Path:
    (folder / "subsets").mkdir()
    archives = subsets(documents)
    for number, at in enumerate(range(0, len(archives), 10)):
        inner = [(f"openwebtext/{name}", content) for name, content in archives[at : at + 10]]
        (folder / "subsets" / f"urlsf_subset{number:02d}.tar").write_bytes(tar_of(inner))
    return folder


def _write_7z(documents: list[str], folder: Path) -> Path:
    import py7zr

    # With the default, the reader would hold the last 16 MB.
    filters = [{"id": py7zr.FILTER_LZMA2, "preset": 1}]
    with py7zr.SevenZipFile(folder / "openwebtext.7z", "w", filters=filters) as archive:
        for name, content in pages(documents):
            archive.writestr(content, f"openwebtext/{name}")
    return folder / "openwebtext.7z"


def _write_parquet(documents: list[str], folder: Path) -> Path:
    for number, table in enumerate(_tables(documents)):
        more = table.append_column("n", pyarrow.array(range(len(table))))
        parquet.write_table(more, folder / f"{number:03d}.parquet", row_group_size=2)
    return folder


def _write_csv(documents: list[str], folder: Path) -> Path:
    with open(folder / "corpus.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["n", "text"])
        writer.writerows(enumerate(documents))
    return folder / "corpus.csv"


def _write_text(documents: list[str], folder: Path) -> Path:
    for number, text in enumerate(documents):
        (folder / f"{number:06d}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


_OPENWEBTEXT: dict[str, Callable[[list[str], Path], Path]] = {
    "openwebtext-tar-xz": _write_tar_xz,
    "openwebtext-folder": _write_folder,
    "openwebtext-subsets": _write_subsets,
    "7z": _write_7z,
}
_OTHERS: dict[str, Callable[[list[str], Path], Path]] = {
    "hub": write_hub,
    "parquet": _write_parquet,
    "csv": _write_csv,
    "text": _write_text,
}
KINDS = ("jsonl", "jsonl.gz", "jsonl.zst", "jsonl.xz", *_OPENWEBTEXT, *_OTHERS)


def write(kind: str, documents: list[str], folder: Path) -> dict[str, str]:
    """Write documents in a layout of ``KINDS``, which keeps their order; returns the recipe keys to read them."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in _OPENWEBTEXT:
        return {"data.source.kind": "openwebtext", "data.source.path": str(_OPENWEBTEXT[kind](documents, folder))}
    if kind in _OTHERS:
        path = _OTHERS[kind](documents, folder)
        whole = {"data.source.chunk_chars": "0"} if kind == "text" else {}
        return {"data.source.kind": kind, "data.source.path": str(path), **whole}
    path = folder / f"corpus.{kind}"
    path.write_bytes(packed(write_jsonl(folder / "corpus", documents).read_bytes(), path.name))
    (folder / "corpus").unlink()
    return {"data.source.kind": "jsonl", "data.source.path": str(path)}


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
