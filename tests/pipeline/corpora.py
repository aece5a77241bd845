"""Small corpora, and recipes over them."""

import hashlib
import json
import os
import random
from pathlib import Path

from configs.load import load_recipe
from configs.schema import Recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "demo.yaml"
SHARED_DATA = Path(os.environ.get("MILLRACE_SHARED_DATA", ROOT.parent / "shared" / "data"))

_SYLLABLES = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "or")]


def texts(count: int, seed: int = 0, sentences: int = 12) -> list[str]:
    """Documents of made-up words; no two share a run of eight words, all but surely."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(1500)]
    made = []
    for _ in range(count):
        lines = [" ".join(rng.choices(words, k=rng.randint(5, 14))).capitalize() + "." for _ in range(sentences)]
        made.append("\n".join(lines))
    return made


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
    """The demonstration recipe made small; later overrides win."""
    return load_recipe(RECIPE, overrides(root, *more))


def of_jsonl(root: Path, path: Path, *more: str) -> Recipe:
    return recipe(root, "data.source.kind=jsonl", f"data.source.path={path}", *more)


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
