"""The data stages: where text comes from, how it is cleaned, and how it becomes token shards."""

import codecs
import difflib
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section
from configs.schema.clean import CleanSection

#: Key -> the kinds of source that read it. Other kinds reject it.
READ_BY = {
    "config": ("hub",),
    "split": ("hub",),
    "revision": ("hub",),
    "packages": ("pydocs",),
    "text_field": ("jsonl", "csv", "parquet", "hub"),
    "target_field": ("jsonl", "csv", "parquet", "pydocs"),
    "target_path": ("parallel",),
    "encoding": ("text", "jsonl", "csv", "parallel"),
    "delimiter": ("csv",),
    "merge": ("text",),
    "chunk": ("text",),
    "chunk_chars": ("text",),
    "chunk_overlap": ("text",),
    "documents": ("patterns", "sequences"),
    "min_chars": ("patterns", "sequences"),
    "max_chars": ("patterns", "sequences"),
    "largest_step": ("patterns",),
    "symbols": ("sequences",),
    "task": ("sequences",),
}
#: Kinds of source that do not read a path.
_WITHOUT_PATH = ("pydocs", "patterns", "sequences")
#: Possible targets of pydocs documents.
_PYDOCS_TARGETS = ("kind", "package")


class SourceSection(Section):
    """Where text comes from. [data.md](data.md#sources) describes each kind and the files that it reads.

    Keys that the chosen kind does not read are rejected.
    """

    headings: ClassVar[dict[str, str]] = {
        "kind": "All kinds",
        "text_field": "Records and their fields",
        "encoding": "Text files",
        "target_path": "`parallel`",
        "config": "`hub`",
        "packages": "`pydocs`",
        "documents": "Generated text (`patterns` and `sequences`)",
    }

    kind: Literal[
        "pydocs", "text", "jsonl", "csv", "parquet", "openwebtext", "hub", "patterns", "parallel", "sequences"
    ] = Field(
        "pydocs",
        description="Kind of source. `text`, `jsonl`, `csv`, `parquet`: files. `hub`: a dataset repository on the "
        "Hugging Face Hub, which is streamed. `openwebtext`: the original archives. `pydocs`: the documentation of the "
        "installed Python. `parallel`: one file of texts and one of targets, aligned by line. `patterns` and "
        "`sequences`: generated text.",
    )
    path: OptionalPath = Field(
        None,
        description="File, folder, glob or URL (`s3://`, `hf://`, ...). For `hub`, a repository or a local folder. Not "
        "used by `pydocs`, `patterns` and `sequences`.",
    )
    sample_bytes: int | None = Field(
        None,
        gt=0,
        description="Keep a seeded random sample of about this many bytes of text. By default, everything is kept.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="With several sources, how often training samples are drawn from this one, relative to the others.",
    )
    text_field: str = Field(
        "text",
        description="Field or column that holds the text. `meta.body` is the field `body` inside `meta`, unless a "
        "field has exactly that name. `csv` has no nested fields.",
    )
    target_field: str | None = Field(
        None,
        description="Field or column that holds the text's target: a label, tags or another text. For `pydocs`, `kind` "
        "or `package`. By default, the text has no target.",
    )
    encoding: str = Field(
        "utf-8",
        description="Python name of the files' encoding, such as `latin-1`. With `utf-8`, a byte order mark is "
        "allowed. `text` also detects UTF-16 by its byte order mark.",
    )
    delimiter: str | None = Field(
        None, description="Character that separates fields. Defaults to a comma, or a tab in `.tsv` files."
    )
    merge: bool = Field(False, description="Join all files into one text, with a blank line between files.")
    chunk: Literal["paragraph", "sentence", "window"] = Field(
        "paragraph",
        description="Where a file may be split into documents. `window`: anywhere, and the documents overlap by "
        "`chunk_overlap` characters.",
    )
    chunk_chars: int = Field(
        8000,
        ge=0,
        description="Split files into documents of about this many characters. 0 disables splitting: each file is one "
        "document.",
    )
    chunk_overlap: int = Field(
        0, ge=0, description="Number of characters that consecutive windows share. Requires `chunk: window`."
    )
    target_path: OptionalPath = Field(
        None,
        description="File, folder, glob or URL of the targets. Line N of the targets corresponds to line N of `path`.",
    )
    config: str | None = Field(None, description="Dataset configuration to load. Defaults to the repository's default.")
    split: str = Field("train", description="Dataset split to load.")
    revision: str | None = Field(
        None, description="Branch, tag or commit. Defaults to the newest commit, which is recorded in the manifest."
    )
    packages: tuple[str, ...] | None = Field(
        None,
        description="Read only these top-level modules and packages, such as `[json, numpy]`. `topics` is the language "
        "reference. By default, all installed packages are read.",
    )
    documents: int = Field(2000, gt=0, description="Number of documents.")
    min_chars: int = Field(400, ge=2, description="Length of the shortest documents, in characters.")
    max_chars: int = Field(1200, ge=2, description="Length of the longest documents, in characters.")
    largest_step: int = Field(
        4, ge=1, le=61, description="Largest step through the alphabet from one character to the next."
    )
    symbols: int = Field(26, ge=2, le=62, description="Number of different letters.")
    task: Literal["copy", "reverse"] = Field(
        "copy", description="Whether the target is the text itself (`copy`) or the reversed text (`reverse`)."
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        """Check the encoding, and return Python's canonical name for it."""
        try:
            # Codecs that are unsuitable for text files, such as punycode, reject this error handler.
            b"\xff".decode(encoding, "surrogateescape")
        except UnicodeDecodeError:
            # This is a text encoding in which the byte alone is not a valid character.
            pass
        except (LookupError, ValueError):
            raise ValueError(
                f"{encoding!r} is not a text encoding that Python knows, such as latin-1, cp1252 or utf-16"
            ) from None
        return codecs.lookup(encoding).name.removesuffix("-sig")

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        r"""Check and return the delimiter. A literal ``\t``, as a shell passes it, becomes a tab."""
        delimiter = "\t" if delimiter == "\\t" else delimiter
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ValueError(f"{delimiter!r} is not a single character that can separate fields")
        return delimiter

    @model_validator(mode="after")
    def _fits(self) -> "SourceSection":
        if self.kind not in _WITHOUT_PATH and not self.path:
            raise ValueError(f"path is missing: kind={self.kind} reads from it")
        for key, kinds in READ_BY.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is read only by {', '.join(kinds)}, not by kind={self.kind}: leave it out")
        if self.kind in _WITHOUT_PATH and self.path:
            default = ", the default" if self.kind == "pydocs" else ""
            raise ValueError(f"path ({self.path}) is not read by kind={self.kind}{default}: set kind")
        if self.kind == "parallel" and not self.target_path:
            raise ValueError("target_path is missing: kind=parallel reads the targets from it")
        if self.kind == "pydocs" and self.target_field not in (None, *_PYDOCS_TARGETS):
            raise ValueError(
                f"target_field ({self.target_field}) must be {' or '.join(_PYDOCS_TARGETS)} for kind=pydocs"
            )
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        if self.chunk_overlap and (self.chunk != "window" or self.chunk_overlap >= self.chunk_chars):
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) needs chunk=window and must be below chunk_chars "
                f"({self.chunk_chars})"
            )
        return self

    @property
    def has_targets(self) -> bool:
        """Whether the source's documents have targets."""
        return self.kind in ("parallel", "sequences") or self.target_field is not None


class TokensSection(Section):
    """How token shards are written, and which documents are held out for validation."""

    shard_tokens: int = Field(100_000_000, gt=0, description="Approximate number of tokens per shard.")
    validation_fraction: float = Field(
        0.0005,
        gt=0.0,
        lt=1.0,
        description="Fraction of documents held out for validation. They are selected by a hash of their text. At "
        "least one document is held out.",
    )
    overlap_words: int = Field(
        8, gt=0, description="Held-out documents are compared with the training text by sequences of this many words."
    )
    max_overlap: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Drop a held-out document if more than this fraction of its word sequences also occur in the "
        "training text.",
    )


class DataSection(Section):
    """The data stages: reading sources, cleaning text and writing token shards."""

    root: NonIdentity[OptionalPath] = Field(
        None,
        description="Folder for `documents/`, `tokenizer/` and `tokens/`. Runs with the same folder share their data. "
        "Defaults to the run's folder.",
    )
    source: SourceSection = SourceSection()
    sources: dict[str, SourceSection] = Field(
        {},
        description="Several named sources, to use instead of `source`. Training draws from each in proportion to its "
        "`weight`.",
    )
    clean: CleanSection = CleanSection()
    tokens: TokensSection = TokensSection()
    max_bad_fraction: NonIdentity[float] = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="The stage fails if more than this fraction of the inputs, or of their bytes, cannot be read. "
        "Otherwise, unreadable inputs are skipped and counted.",
    )
    workers: NonIdentity[int] = Field(
        0, ge=0, description="Worker processes for the data stages. 0 means one per core."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, section: Any) -> Any:
        """Reject `source` combined with `sources`, and a named source without a kind, whose name is probably a typo."""
        several = section.get("sources") if isinstance(section, dict) else None
        if not several or not isinstance(several, dict):
            return section
        single = section.get("source")
        for key, value in single.items() if isinstance(single, dict) else ():
            field = SourceSection.model_fields.get(key)
            # A fully resolved recipe dump sets every key, so defaults are fine.
            if field and value != field.default:
                raise ValueError(
                    f"source.{key} and data.sources exclude each other: set data.sources.NAME.{key} "
                    f"(NAME: {', '.join(map(str, several))}), or leave data.source out (data.source={{}})"
                )
        for name, source in several.items():
            if isinstance(source, dict) and "kind" not in source:
                raise ValueError(f"sources.{name}.kind is missing{_others(str(name), [*map(str, several)])}")
        return section

    @model_validator(mode="after")
    def _fits(self) -> "DataSection":
        for name in self.sources:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or not name[0].isalnum():
                raise ValueError(f"sources.{name}: a name has only letters, digits, - and _")
        return self

    @property
    def named_sources(self) -> dict[str, SourceSection]:
        """Every source by name. A single source is named after its kind."""
        return self.sources or {self.source.kind: self.source}

    def key_of(self, source: SourceSection) -> str:
        """Return the recipe key that holds a source."""
        return next((f"data.sources.{name}" for name, other in self.sources.items() if other is source), "data.source")


def _others(name: str, names: list[str]) -> str:
    """Return a hint for a source without a kind. It lists the other sources, most similar name first, and all kinds."""
    others = [other for other in names if other != name]
    others.sort(key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    kinds = ", ".join(get_args(SourceSection.model_fields["kind"].annotation))
    known = f"; the {'sources are' if len(others) > 1 else 'source is'} {', '.join(others)}" if others else ""
    return f"{known}; the kinds are {kinds}"
