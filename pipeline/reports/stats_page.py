"""The page written by ``python -m pipeline stats``: sources, lengths, dropped documents, tokens and piece usage."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from artefacts import repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.pages import markup, shell
from artefacts.pages.figures import COLORS, inline_svg
from artefacts.pages.formats import compact, integer, share
from artefacts.progress import bar
from configs.run_layout import RunLayout
from pipeline.documents import read_shards
from pipeline.tokens.indexed_dataset import IndexedDataset
from tokenizer.registry import load_tokenizer

#: Number of pieces to list on the page.
_LISTED = 40
#: Maximum characters per line in a bar's label.
_LABEL_CHARS = 36
#: Number of ids to count at a time.
_COUNTED = 16 << 20
#: Number of files per source used to measure bytes per token.
_MEASURED_FILES = 4


def build_page(name: str, layout: RunLayout, manifests: dict[str, Manifest]) -> str:
    """Return the page as HTML.

    Raises:
        RequestError: an artefact is damaged.
    """
    documents, tokens = manifests.get("documents"), manifests.get("tokens")
    sections = []
    if documents:
        sections += [_documents_section(layout.documents, documents), _dropped_section(documents)]
        sections.append(_masked_section(documents))
    if tokens:
        sections.append(_tokens_section(layout, tokens, documents))
    if tokens and "tokenizer" in manifests:
        sections.append(_pieces_section(layout, tokens))
    facts: dict[str, str] = {}
    if documents:
        facts |= {"Documents": integer(documents.counts["documents"]), "Text": compact(documents.counts["bytes"], "B")}
    if tokens:
        train = tokens.counts["train"]
        facts["Training tokens"] = compact(train["tokens"])
        facts["Bytes per token"] = f"{train['bytes'] / max(train['tokens'], 1):.2f}"
    return shell.page(name, "Millrace data", markup.facts(facts), "\n".join(part for part in sections if part))


def _documents_section(folder: Path, published: Manifest) -> str:
    files = read_shards.files_by_source(folder, published)
    sizes = {name: _columns(paths, "bytes") for name, paths in files.items()}
    by_source = published.counts.get("sources")
    counts = (
        [*by_source.items(), ("total", published.counts)] if by_source else [(name, published.counts) for name in files]
    )
    rows = [
        [
            name,
            integer(of_source["read_documents"]),
            compact(of_source["read_bytes"], "B"),
            integer(of_source["documents"]),
            compact(of_source["bytes"], "B"),
            integer(sum(of_source["dropped"].values())),
            integer(sum(of_source["bad_inputs"].values())),
        ]
        for name, of_source in counts
    ]
    head = ("source", "read", "of text", "kept", "of text", "dropped", "unreadable")
    return markup.section(
        "documents",
        "Documents",
        markup.table(head, rows),
        markup.figure(
            inline_svg(lambda: _histogram(sizes, "bytes of UTF-8"), "document lengths"),
            "Lengths of the cleaned documents; both axes are logarithmic.",
        ),
    )


def _dropped_section(published: Manifest) -> str:
    reasons = dict(sorted(published.counts["dropped"].items(), key=lambda item: -item[1]))
    reasons |= {f"unreadable: {name}": count for name, count in published.counts["bad_inputs"].items()}
    read = published.counts["read_documents"]
    if not reasons:
        return markup.section("dropped", "Dropped", markup.note("Nothing was dropped."))
    rows = [[name, integer(count), share(count, read)] for name, count in reasons.items()]
    figure = inline_svg(lambda: _bars(reasons, "documents"), "drops by reason")
    table = markup.table(("reason", "documents", "of those read"), rows)
    return markup.section("dropped", "Dropped", markup.figure(figure, "Documents dropped, by reason."), table)


def _masked_section(published: Manifest) -> str:
    masked = published.counts["masked"]
    if not masked:
        return ""
    table = markup.table(("kind", "pieces"), [[kind, integer(count)] for kind, count in masked.items()])
    note = "Personal data that was replaced, also in duplicates and in documents that were not sampled."
    return markup.section("masked", "Masked", table, markup.note(note))


def _tokens_section(layout: RunLayout, published: Manifest, documents: Manifest | None) -> str:
    sides = {side: [IndexedDataset(prefix) for prefix in _prefixes(layout.tokens, side)] for side in ("train", "val")}
    lengths = {side: np.concatenate([shard.lengths for shard in shards]) for side, shards in sides.items() if shards}
    rows = [
        [
            side,
            integer(of_side["documents"]),
            integer(of_side["tokens"]),
            compact(of_side["bytes"], "B"),
            f"{of_side['bytes'] / max(of_side['tokens'], 1):.3f}",
            integer(of_side["shards"]),
        ]
        for side, of_side in ((side, published.counts[side]) for side in ("train", "validation"))
    ]
    parts = [
        markup.table(("side", "documents", "tokens", "of text", "bytes per token", "shards"), rows),
        markup.figure(
            inline_svg(lambda: _histogram(lengths, "tokens"), "tokens per document"),
            "Tokens per document, including the end-of-text token.",
        ),
    ]
    if documents and (ratios := _bytes_per_token(layout, documents)):
        figure = inline_svg(lambda: _plain_histogram(ratios, "bytes per token"), "bytes per token by document")
        measured = " and ".join(
            f"{len(of_side):,} training documents" + (f" of {name}" if len(ratios) > 1 else "")
            for name, of_side in ratios.items()
        )
        parts.append(markup.figure(figure, f"Bytes per token of the first {measured}."))
    return markup.section("tokens", "Tokens", *parts)


def _bytes_per_token(layout: RunLayout, documents: Manifest) -> dict[str, NDArray[np.float64]]:
    """Return the bytes per token of each source's first training documents.

    A source is omitted if its token shards have fewer documents than were read from its documents files.
    """
    path = layout.tokens / "validation.parquet"
    with repair_hints.reading("tokens", path):
        held_out = set(parquet.read_table(path, columns=["id"])["id"].to_pylist())
    files = read_shards.files_by_source(layout.documents, documents)
    ratios = {}
    for name, paths in files.items():
        sizes: list[int] = []
        for documents_path in paths[:_MEASURED_FILES]:
            with repair_hints.reading("documents", documents_path):
                table = parquet.read_table(documents_path, columns=["id", "bytes"])
            pairs = zip(table["id"].to_pylist(), table["bytes"].to_pylist(), strict=True)
            sizes += [size for identifier, size in pairs if identifier not in held_out]
        train = _prefixes(layout.tokens / name if len(files) > 1 else layout.tokens, "train")
        lengths = np.concatenate([np.zeros(0, np.int32), *(IndexedDataset(prefix).lengths for prefix in train)])
        if sizes and len(lengths) >= len(sizes):
            ratios[name] = np.array(sizes) / np.maximum(lengths[: len(sizes)] - 1, 1)
    return ratios


def _visible(piece: str) -> str:
    r"""Escape the control characters in a piece, so that a newline is shown as \n."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in piece)


def _pieces_section(layout: RunLayout, published: Manifest) -> str:
    tokenizer = load_tokenizer(layout.tokenizer)
    counts = _usage(_prefixes(layout.tokens, "train"), tokenizer.vocab_size, published.counts["train"]["tokens"])
    order = np.argsort(-counts, kind="stable")
    total = int(counts.sum())
    rows = [
        [str(rank + 1), _visible(tokenizer.piece(int(i))), str(i), integer(counts[i]), share(float(counts[i]), total)]
        for rank, i in enumerate(order[:_LISTED])
        if counts[i]
    ]
    unused = [i for i in np.flatnonzero(counts == 0).tolist() if not tokenizer.is_reserved(i)]
    never = [_visible(tokenizer.piece(i)) for i in unused]
    bytes_unused = sum(tokenizer.is_byte(i) for i in unused)
    return markup.section(
        "pieces",
        "Pieces",
        markup.figure(
            inline_svg(lambda: _ranks(counts[order]), "how often pieces are used"),
            "How often each piece of the vocabulary occurs in the training shards, most frequent first.",
        ),
        markup.table(("rank", "piece", "id", "times", "of all"), rows, "Most frequent pieces"),
        markup.note(f"{len(never):,} of {tokenizer.vocab_size:,} pieces never occur, {bytes_unused} of them bytes."),
        markup.details("Never used", "  ".join(never)) if never else "",
    )


def _usage(prefixes: Iterable[Path], vocab_size: int, total: int) -> NDArray[np.int64]:
    """Count how often each id occurs in the shards.

    Raises:
        RequestError: a shard has an id outside the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    with bar(total, "token", "pieces") as progress:
        for prefix in prefixes:
            ids = IndexedDataset(prefix).tokens
            for start in range(0, len(ids), _COUNTED):
                block_counts = np.bincount(ids[start : start + _COUNTED], minlength=vocab_size)
                if len(block_counts) > vocab_size:
                    raise RequestError(
                        f"{prefix}: id {len(block_counts) - 1} is outside the vocabulary of {vocab_size}"
                    )
                counts += block_counts
                progress.update(len(ids[start : start + _COUNTED]))
    return counts


def _prefixes(folder: Path, side: str) -> list[Path]:
    return [path.with_suffix("") for path in sorted(folder.rglob(f"{side}-*.idx"))]


def _columns(paths: list[Path], column: str) -> NDArray[Any]:
    columns = [np.zeros(0, np.int64)]
    for path in paths:
        with repair_hints.reading("documents", path):
            columns.append(parquet.read_table(path, columns=[column])[column].to_numpy())
    return np.concatenate(columns)


def _histogram(series: dict[str, NDArray[Any]], unit: str) -> Figure:
    """Plot histograms of positive sizes, with four bins per power of two."""
    figure = Figure(figsize=(7, 2.8))
    axes = figure.subplots()
    series = {name: np.log2(np.maximum(values, 1)) for name, values in series.items()}
    all_values = np.concatenate([values for values in series.values() if len(values)] or [np.zeros(1)])
    first, last = np.floor(4 * all_values.min()) / 4, np.floor(4 * all_values.max() + 1) / 4
    edges = 2.0 ** np.arange(first, last + 0.125, 0.25)
    for color, (name, values) in zip(COLORS * 8, series.items(), strict=False):
        axes.hist(2.0**values, edges.tolist(), histtype="step", color=color, label=name, linewidth=1.4)
    axes.set(xscale="log", yscale="log", xlabel=unit, ylabel="documents", xlim=(edges[0] / 1.1, edges[-1] * 1.1))
    if edges[-1] < 100 * edges[0]:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: integer(value))
    if len(series) > 1:
        axes.legend()
    return figure


def _plain_histogram(series: dict[str, NDArray[np.float64]], unit: str) -> Figure:
    figure = Figure(figsize=(7, 2.4))
    axes = figure.subplots()
    all_values = np.concatenate(list(series.values()))
    most = np.percentile(all_values, 99.5)
    edges = np.histogram_bin_edges(np.minimum(all_values, most), 80).tolist()
    look: dict[str, Any] = {"histtype": "step", "linewidth": 1.4} if len(series) > 1 else {}
    for color, (name, values) in zip(COLORS * 8, series.items(), strict=False):
        axes.hist(np.minimum(values, most), edges, color=color, label=name, **look)
    axes.set(xlabel=unit, ylabel="documents")
    if len(series) > 1:
        axes.legend()
    return figure


def _bars(values: dict[str, int], unit: str) -> Figure:
    """Plot a bar for each name, from top to bottom. Long names wrap over several lines."""
    names = [textwrap.fill(name, _LABEL_CHARS) for name in values]
    lines = np.array([name.count("\n") + 1 for name in names])
    figure = Figure(figsize=(7, 0.6 + 0.14 * float((lines + 1).sum())))
    axes = figure.subplots()
    places = np.cumsum(lines + 1) - (lines + 1) / 2
    axes.barh(places.tolist(), list(values.values()), 1.4, color=COLORS[1], tick_label=names)
    axes.set(xlabel=unit, ylim=(int((lines + 1).sum()), 0))
    axes.tick_params("y", labelsize=8, length=0)
    if max(values.values()) > 100:
        # Start the axis below one, so that a single document is visible.
        axes.set(xscale="log", xlim=(0.5, None))
    return figure


def _ranks(counts: NDArray[np.int64]) -> Figure:
    figure = Figure(figsize=(7, 2.8))
    axes = figure.subplots()
    used = counts[counts > 0]
    axes.plot(np.arange(1, len(used) + 1), used, color=COLORS[2])
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="times")
    return figure
