"""Reading of sources in one process, from records to documents, against datatrove's readers.

``python -m benchmarks.data.sources``. The text comes from the installed Python. Both programs read the same files and
access every text.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import corpus, paired
from benchmarks.paired import Ratio
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Source
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.parquet import ParquetSource


def measure(quick: bool = False) -> list[Ratio]:
    """Compare the readers of zstd-compressed JSON Lines and of parquet."""
    from datatrove.pipeline.readers import JsonlReader, ParquetReader

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = list(corpus.sources(10_000_000 if quick else 60_000_000))
        size = corpus.jsonl(folder / "lines", iter(texts), 2)
        _parquet(folder / "rows", texts)
        lines, rows = str(folder / "lines"), str(folder / "rows")
        return [
            _compared("JSON lines (zstd) to documents", JsonlSource(lines, "text"), partial(JsonlReader, lines), size),
            _compared("parquet to documents", ParquetSource(rows, "text"), partial(ParquetReader, rows), size),
        ]


def _parquet(folder: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    folder.mkdir()
    parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet", row_group_size=1000)


def _compared(what: str, source: Source, reader: Callable[..., Any], size: int) -> Ratio:
    def ours() -> Iterable[str]:
        bad = BadInputs()
        return (document.text for part in source.parts(1) for document in source.read(part, bad))

    def theirs() -> Iterable[str]:
        return (document.text for document in reader(file_progress=False, doc_progress=False).run())

    def taken(texts: Callable[[], Iterable[str]]) -> float:
        return paired.seconds(lambda: sum(len(text) for text in texts()))

    assert sum(map(len, ours())) == sum(map(len, theirs()))
    name = f"{what}, against datatrove"
    return paired.compare(name, partial(taken, ours), partial(taken, theirs), size / 1e6, "MB/s")


def main() -> int:
    for ratio in measure("--quick" in sys.argv):
        print(ratio)
    return 0


if __name__ == "__main__":
    sys.exit(main())
