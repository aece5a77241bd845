"""The data stages: where text comes from, how it is cleaned, how it becomes token shards."""

from typing import Literal

from pydantic import Field

from configs.schema.base import Free, Section


class SourceSection(Section):
    kind: Literal["pydocs", "text", "jsonl"] = Field(
        "pydocs", description="pydocs: documentation of the installed Python; text: files and folders; jsonl: records"
    )
    path: str | None = Field(None, description="file, folder or glob of the source; unused by pydocs")
    packages: tuple[str, ...] | None = Field(
        None, description="pydocs: only these top-level modules and packages, such as [json, numpy]; left out: all"
    )
    text_field: str = Field("text", description="field of a jsonl record that holds the text")
    chunk_chars: int = Field(
        8000, ge=0, description="text: cut files at paragraph ends into documents of about so many characters; 0: whole"
    )
    sample_bytes: int | None = Field(None, gt=0, description="keep a seeded sample of about so many UTF-8 bytes")


class CleanSection(Section):
    unicode: Literal["NFC", "NFKC", "none"] = Field("NFC", description="Unicode normalisation form")
    min_chars: int = Field(50, ge=0, description="drop shorter documents")
    max_chars: int = Field(200_000, gt=0, description="drop longer documents")
    exact_dedup: bool = Field(True, description="keep the first of documents with the same text")


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
    root: Free[str | None] = Field(None, description="folder for documents, tokenizer and tokens; default: the run's")
    source: SourceSection = SourceSection()
    clean: CleanSection = CleanSection()
    tokens: TokensSection = TokensSection()
    max_bad_fraction: Free[float] = Field(
        0.01, ge=0.0, le=1.0, description="share of unreadable inputs that is put up with; each is counted and reported"
    )
    workers: Free[int] = Field(0, ge=0, description="processes of the data stages; 0: one a core")
