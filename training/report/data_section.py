"""Report section about the run's data: documents kept and dropped, the tokenizer, token shards and examples."""

from collections.abc import Iterator
from typing import Any

from artefacts.pages import markup
from artefacts.pages.formats import compact, decimal, integer, share
from training.report.run_files import RunFiles


def data_section(run: RunFiles) -> str:
    """Return the section, with tables for the data artefacts that exist."""
    documents, tokens = run.counts("documents"), run.counts("tokens")
    return markup.section(
        "data",
        "Data",
        markup.table(["documents", "number", "share"], _document_rows(documents), "From source to clean documents"),
        _tokenizer_note(run.counts("tokenizer")),
        markup.table(
            ["split", "documents", "bytes", "tokens", "bytes per token", "shards"],
            _token_rows(tokens),
            "Token shards",
        ),
        markup.table(["left out of validation", "documents"], _dropped_rows(tokens)),
        *_example_tables(run.counts("examples"), "Examples"),
        *(
            table
            for stage, saved in run.examples.items()
            for table in _example_tables(saved.counts, f"Examples: {stage}")
        ),
    )


def _example_tables(counts: dict[str, Any], title: str) -> list[str]:
    return [
        markup.table(["split", "examples", "tokens", "targets"], _example_rows(counts), title),
        markup.table(["examples left out", "number"], _dropped_rows(counts)),
    ]


def _document_rows(counts: dict[str, Any]) -> Iterator[list[str]]:
    if not counts:
        return
    dropped, outside = counts.get("dropped", {}), counts.get("not_sampled", 0)
    kept = counts.get("documents", 0)
    read = counts.get("read_documents") or kept + outside + sum(dropped.values())
    yield ["read", integer(read), ""]
    if outside:
        yield ["not sampled", integer(outside), share(outside, read)]
    for reason, number in sorted(dropped.items(), key=lambda entry: -entry[1]):
        yield [f"dropped: {reason}", integer(number), share(number, read)]
    for reason, number in counts.get("bad_inputs", {}).items():
        yield [f"unreadable: {reason}", integer(number), ""]
    for kind, number in counts.get("masked", {}).items():
        yield [f"masked: {kind}", integer(number), ""]
    size = f", {compact(counts['bytes'], 'B')}" if counts.get("bytes") else ""
    yield [f"kept{size}", integer(kept), share(kept, read)]


def _tokenizer_note(counts: dict[str, Any]) -> str:
    if not counts.get("vocab_size"):
        return ""
    trained = f", trained on {integer(counts['sample_documents'])} documents" if counts.get("sample_documents") else ""
    return markup.note(f"Tokenizer: vocabulary of {integer(counts['vocab_size'])}{trained}.")


def _token_rows(counts: dict[str, Any]) -> Iterator[list[str]]:
    for split in ("train", "validation"):
        if part := counts.get(split):
            numbers = [integer(part.get(key, 0)) for key in ("documents", "bytes", "tokens")]
            ratio = part["bytes"] / part["tokens"] if part.get("bytes") and part.get("tokens") else None
            yield [split, *numbers, decimal(ratio, 2), integer(part.get("shards", 0))]


def _example_rows(counts: dict[str, Any]) -> Iterator[list[str]]:
    for key, name in (("train", "train"), ("held_out", "held out")):
        if part := counts.get(key):
            # In manifests of chat examples, the key is target_tokens.
            targets = part.get("targets", part.get("target_tokens", 0))
            yield [name, *(integer(number) for number in (part.get("examples", 0), part.get("tokens", 0), targets))]


def _dropped_rows(counts: dict[str, Any]) -> list[list[str]]:
    dropped = sorted(counts.get("dropped", {}).items(), key=lambda entry: -entry[1])
    return [[reason, integer(number)] for reason, number in dropped]
