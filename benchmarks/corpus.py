"""Real text for the benchmarks, from installed packages. It needs no network, and is the same in every run."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import zstandard

from artefacts.checkout import CHECKOUT

CACHE = CHECKOUT / ".cache" / "bench"


def docstrings() -> list[str]:
    """Return distinct documentation topics and docstrings of the installed Python, longer than 50 characters."""
    from configs.schema.data import SourceSection
    from pipeline.sources.bad_inputs import BadInputs
    from pipeline.sources.pydocs import PydocsSource

    source = PydocsSource(CACHE / "pydocs", SourceSection().packages)
    bad = BadInputs()
    return [document.text for part in source.parts(2) for document in source.read(part, bad) if len(document.text) > 50]


def sources(most_bytes: int) -> Iterator[str]:
    """Yield distinct source files of installed packages, of 200 to 100,000 characters, up to about ``most_bytes``."""
    import sysconfig

    total, seen = 0, set()
    for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            digest = hashlib.sha256(text.encode()).digest()
            if not 200 <= len(text) <= 100_000 or digest in seen:
                continue
            seen.add(digest)
            total += len(text.encode())
            yield text
            if total >= most_bytes:
                return


def web_pages() -> list[str]:
    """Return 500 documents: OpenWebText from the folder ``MILLRACE_SHARED_DATA`` if it exists, else long docstrings."""
    path = (
        Path(os.environ.get("MILLRACE_SHARED_DATA", CHECKOUT.parent / "shared" / "data")) / "openwebtext-500.jsonl.zst"
    )
    if not path.exists():
        return [text for text in docstrings() if 2000 < len(text) < 20_000][:500]
    with zstandard.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def jsonl(path: Path, texts: Iterator[str], files: int) -> int:
    """Write texts to ``files`` zstd-compressed JSON Lines files below ``path``. Returns the text's size in bytes."""
    path.mkdir(parents=True, exist_ok=True)
    total = 0
    names = [path / f"{number:03d}.jsonl.zst" for number in range(files)]
    with ExitStack() as stack:
        streams = [stack.enter_context(zstandard.open(name, "wb")) for name in names]
        for number, text in enumerate(texts):
            streams[number % files].write((json.dumps({"text": text}) + "\n").encode())
            total += len(text.encode())
    return total
