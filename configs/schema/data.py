"""The data stages: where text comes from, how it is cleaned, how it becomes token shards."""

import codecs
import difflib
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section
from configs.schema.clean import CleanSection

#: Key -> kinds of source that read it; elsewhere it would be ignored in silence.
_READ_BY = {
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
#: Kinds of source that read nothing from a path.
_WITHOUT_PATH = ("pydocs", "patterns", "sequences")
#: What a document of pydocs has that can be learnt.
_PYDOCS_TARGETS = ("kind", "package")


class SourceSection(Section):
    kind: Literal[
        "pydocs", "text", "jsonl", "csv", "parquet", "openwebtext", "hub", "patterns", "parallel", "sequences"
    ] = Field(
        "pydocs",
        description="pydocs: documentation of the installed Python; text, jsonl, csv, parquet: files; openwebtext: the "
        "original archives, whole, in pieces or as .7z; hub: a dataset repository, streamed; patterns: made up, walks "
        "through an alphabet; parallel: files of lines beside files of their targets; sequences: made up, random "
        "letters to be copied or reversed",
    )
    path: OptionalPath = Field(
        None,
        description="file, folder, glob or URL (s3://, hf://, ...); hub: repository or local folder; unused by pydocs, "
        "patterns and sequences",
    )
    target_path: OptionalPath = Field(
        None, description="parallel: file, folder, glob or URL whose line N belongs to line N of path; files by name"
    )
    config: str | None = Field(None, description="hub: the repository's configuration; left out: its default one")
    split: str = Field("train", description="hub: the repository's split")
    revision: str | None = Field(
        None, description="hub: branch, tag or commit; left out: the newest, which is recorded"
    )
    packages: tuple[str, ...] | None = Field(
        None, description="pydocs: only these top-level modules and packages, such as [json, numpy]; left out: all"
    )
    text_field: str = Field(
        "text",
        description="field (jsonl) or column (csv, parquet, hub) that holds the text; meta.body: body within meta, "
        "unless one is called so (not csv)",
    )
    target_field: str | None = Field(
        None,
        description="field (jsonl) or column (csv, parquet) with the text or label that belongs to the text; pydocs: "
        "kind or package, of documents then without the line that names both; left out: there is none",
    )
    encoding: str = Field(
        "utf-8",
        description="text, jsonl, csv, parallel: how files are encoded, as Python calls it, such as latin-1 or "
        "shift_jis; utf-8: with or without a byte order mark, of text also UTF-16 with one",
    )
    delimiter: str | None = Field(
        None, description="csv: the character between two fields; left out: a comma, in .tsv files a tab"
    )
    merge: bool = Field(False, description="text: read all files as one text, a blank line between two")
    chunk: Literal["paragraph", "sentence", "window"] = Field(
        "paragraph", description="text: where documents may end; window: anywhere, overlapping by chunk_overlap"
    )
    chunk_chars: int = Field(
        8000, ge=0, description="text: cut files into documents of about so many characters; 0: whole files"
    )
    chunk_overlap: int = Field(0, ge=0, description="text: characters that a window repeats of the one before it")
    documents: int = Field(2000, gt=0, description="patterns, sequences: how many are made")
    min_chars: int = Field(400, ge=2, description="patterns, sequences: length of the shortest documents")
    max_chars: int = Field(1200, ge=2, description="patterns, sequences: length of the longest documents")
    largest_step: int = Field(4, ge=1, le=61, description="patterns: letters from one to the next, at most")
    symbols: int = Field(26, ge=2, le=62, description="sequences: letters of the alphabet")
    task: Literal["copy", "reverse"] = Field("copy", description="sequences: what the target is of the text")
    sample_bytes: int | None = Field(None, gt=0, description="keep a seeded sample of about so many UTF-8 bytes")
    weight: float = Field(1.0, gt=0, description="of several sources: its share of the training samples, in proportion")

    @field_validator("encoding")
    @classmethod
    def _known(cls, given: str) -> str:
        """The encoding by the name that Python has for it."""
        try:
            # Some that are no encodings of text take no way but their own with errors, and say so.
            b"\xff".decode(given, "surrogateescape")
        except UnicodeDecodeError:
            # One byte is no character of it.
            pass
        except (LookupError, ValueError):
            raise ValueError(f"{given!r} is no text encoding of Python's, such as latin-1, cp1252 or utf-16") from None
        return codecs.lookup(given).name.removesuffix("-sig")

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, given: str | None) -> str | None:
        r"""The delimiter; ``\t``, which a shell passes on as it stands, is a tab."""
        given = "\t" if given == "\\t" else given
        if given is not None and (len(given) != 1 or given in '"\r\n\0'):
            raise ValueError(f"{given!r} is not one character that may stand between two fields")
        return given

    @model_validator(mode="after")
    def _fits(self) -> "SourceSection":
        if self.kind not in _WITHOUT_PATH and not self.path:
            raise ValueError(f"path is missing: kind={self.kind} reads from there")
        for key, kinds in _READ_BY.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is read by {', '.join(kinds)} only, not by kind={self.kind}: leave it out")
        if self.kind in _WITHOUT_PATH and self.path:
            default = ", the default" if self.kind == "pydocs" else ""
            raise ValueError(f"path ({self.path}) is not read by kind={self.kind}{default}: set kind")
        if self.kind == "parallel" and not self.target_path:
            raise ValueError("target_path is missing: kind=parallel reads the targets from there")
        if self.kind == "pydocs" and self.target_field not in (None, *_PYDOCS_TARGETS):
            raise ValueError(f"target_field ({self.target_field}) of kind=pydocs is {' or '.join(_PYDOCS_TARGETS)}")
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
        """Whether its documents have a target."""
        return self.kind in ("parallel", "sequences") or self.target_field is not None


class TokensSection(Section):
    shard_tokens: int = Field(100_000_000, gt=0, description="tokens a shard, about")
    validation_fraction: float = Field(
        0.0005, gt=0.0, lt=1.0, description="share of documents held out, by hash; at least one document always is"
    )
    overlap_words: int = Field(8, gt=0, description="length of the word sequences compared with training text")
    max_overlap: float = Field(
        0.5, ge=0.0, le=1.0, description="leave out a validation document that shares more of its sequences than this"
    )


class DataSection(Section):
    root: NonIdentity[OptionalPath] = Field(
        None, description="folder for documents, tokenizer and tokens; default: the run's"
    )
    source: SourceSection = SourceSection()
    sources: dict[str, SourceSection] = Field(
        {}, description="several sources by name instead of one; training draws from each by its weight"
    )
    clean: CleanSection = CleanSection()
    tokens: TokensSection = TokensSection()
    max_bad_fraction: NonIdentity[float] = Field(
        0.01, ge=0.0, le=1.0, description="share of unreadable inputs that is put up with; each is counted and reported"
    )
    workers: NonIdentity[int] = Field(0, ge=0, description="processes of the data stages; 0: one a core")

    @model_validator(mode="before")
    @classmethod
    def _told_apart(cls, given: Any) -> Any:
        """Refuse a source by name without a kind, where a slip in the name would add one, and one beside those."""
        several = given.get("sources") if isinstance(given, dict) else None
        if not several or not isinstance(several, dict):
            return given
        single = given.get("source")
        for key, value in single.items() if isinstance(single, dict) else ():
            field = SourceSection.model_fields.get(key)
            # A recipe that was written out in full has every default.
            if field and value != field.default:
                raise ValueError(
                    f"source.{key} does not go with data.sources, which the recipe has: use data.sources.NAME.{key} "
                    f"(NAME: {', '.join(map(str, several))}), or leave data.source out (data.source={{}})"
                )
        for name, section in several.items():
            if isinstance(section, dict) and "kind" not in section:
                raise ValueError(f"sources.{name}.kind is missing{_others(str(name), [*map(str, several)])}")
        return given

    @model_validator(mode="after")
    def _fits(self) -> "DataSection":
        for name in self.sources:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or not name[0].isalnum():
                raise ValueError(f"sources.{name}: a name is made of letters, digits, - and _")
        return self

    @property
    def named_sources(self) -> dict[str, SourceSection]:
        """Every source by name; a single one goes by its kind."""
        return self.sources or {self.source.kind: self.source}

    def key_of(self, source: SourceSection) -> str:
        """The key under which a source of this recipe stands."""
        return next((f"data.sources.{name}" for name, own in self.sources.items() if own is source), "data.source")


def _others(name: str, names: list[str]) -> str:
    """The cure for a source without a kind: the other sources' names, the nearest first, and the kinds."""
    others = [other for other in names if other != name]
    others.sort(key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    kinds = ", ".join(get_args(SourceSection.model_fields["kind"].annotation))
    known = f"; the {'sources are' if len(others) > 1 else 'source is'} {', '.join(others)}" if others else ""
    return f"{known}; the kinds are {kinds}"
