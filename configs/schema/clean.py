"""Cleaning rules, which can be turned on or off individually. The default thresholds come from the original papers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section

#: Length of an n-gram in words.
_Words = Annotated[int, Field(ge=1, le=64)]
_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


#: Minimum expected fraction of pairs at the similarity threshold that match in at least one band.
_MIN_RECALL = 0.75


class C4Section(Section):
    """C4's rules (Raffel et al. 2020, section 2.2). The rules first remove lines, then drop documents."""

    enabled: bool = Field(False, description="Apply these rules.")
    require_end_mark: bool = Field(True, description="Remove lines that do not end in `.`, `?`, `!` or a quote.")
    min_words_per_line: int = Field(
        3, ge=0, description="Remove lines with fewer words than this. 0 disables this rule."
    )
    max_word_length: int = Field(
        1000,
        ge=0,
        description="Remove lines that contain a word longer than this, in characters. 0 disables this rule.",
    )
    remove_citations: bool = Field(
        True, description="Remove Wikipedia's `[1]`, `[edit]` and `[citation needed]` from the text."
    )
    remove_javascript: bool = Field(True, description="Remove lines that mention JavaScript.")
    remove_policy: bool = Field(True, description="Remove lines about cookies, privacy policies and terms of use.")
    drop_lorem_ipsum: bool = Field(True, description='Drop documents in which a remaining line contains "lorem ipsum".')
    drop_curly_bracket: bool = Field(True, description="Drop documents in which a remaining line contains a `{`.")
    min_sentences: int = Field(
        5, ge=0, description="Drop documents with fewer sentences than this. 0 disables this rule."
    )


class GopherQualitySection(Section):
    """Gopher's quality rules (Rae et al. 2021, table A1 and appendix A.1.1). The rules drop documents.

    Words that consist only of symbols do not count toward the word count or the mean word length.
    """

    enabled: bool = Field(False, description="Apply these rules.")
    min_words: int = Field(50, ge=0, description="Minimum number of words.")
    max_words: int = Field(100_000, gt=0, description="Maximum number of words.")
    min_mean_word_length: float = Field(3, ge=0, description="Minimum mean word length, in characters.")
    max_mean_word_length: float = Field(10, gt=0, description="Maximum mean word length, in characters.")
    max_symbol_word_ratio: float = Field(
        0.1, ge=0, description="Maximum ratio of hash signs to words, and of ellipses to words."
    )
    max_bullet_lines: float = Field(
        0.9, ge=0.0, le=1.0, description="Maximum fraction of lines that start with a bullet."
    )
    max_ellipsis_lines: float = Field(
        0.3, ge=0.0, le=1.0, description="Maximum fraction of lines that end in an ellipsis."
    )
    min_alphabetic_words: float = Field(
        0.8, ge=0.0, le=1.0, description="Minimum fraction of words that contain a letter."
    )
    min_stop_words: int = Field(
        2, ge=0, description="Minimum number of distinct stop words (the, be, to, of, and, that, have, with)."
    )


class GopherRepetitionSection(Section):
    """Gopher's repetition rules (Rae et al. 2021, table A1). A document that exceeds any limit is dropped."""

    enabled: bool = Field(False, description="Apply these rules.")
    duplicate_lines: float = Field(
        0.30, ge=0.0, le=1.0, description="Maximum fraction of lines that repeat an earlier line."
    )
    duplicate_paragraphs: float = Field(
        0.30, ge=0.0, le=1.0, description="Maximum fraction of paragraphs that repeat an earlier one."
    )
    duplicate_line_chars: float = Field(
        0.20, ge=0.0, le=1.0, description="Maximum fraction of characters in repeated lines."
    )
    duplicate_paragraph_chars: float = Field(
        0.20, ge=0.0, le=1.0, description="Maximum fraction of characters in repeated paragraphs."
    )
    top_ngram_chars: dict[_Words, _Fraction] = Field(
        {2: 0.20, 3: 0.18, 4: 0.16},
        description="Maximum fraction of characters in the most frequent n-gram: a map from n, in words, to this "
        "fraction.",
    )
    duplicate_ngram_chars: dict[_Words, _Fraction] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="Maximum fraction of characters in n-grams that occur more than once: a map from n, in words, to "
        "this fraction.",
    )


class NearDuplicatesSection(Section):
    """Near-duplicate removal by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., ch. 3).

    The first document of each cluster of near duplicates is kept.
    """

    enabled: bool = Field(False, description="Drop near duplicates.")
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Minimum Jaccard similarity of near duplicates. Because the similarity is estimated, values up to "
        "2 standard errors lower also count.",
    )
    words: int = Field(5, gt=0, description="Words per shingle.")
    bands: int = Field(
        20, gt=0, le=256, description="Number of bands. Documents that match in all rows of a band are compared."
    )
    rows: int = Field(6, gt=0, le=64, description="Hashes per band.")

    @model_validator(mode="after")
    def _finds_pairs(self) -> "NearDuplicatesSection":
        recall = 1 - (1 - self.threshold**self.rows) ** self.bands
        if recall < _MIN_RECALL:
            raise ValueError(
                f"{self.bands} bands of {self.rows} rows find only {recall:.0%} of pairs with a similarity of "
                f"{self.threshold:g}: use fewer rows or more bands"
            )
        return self


class DecontaminateSection(Section):
    """Removal of documents that overlap with evaluation sets (Brown et al. 2020, appendix C)."""

    path: OptionalPath = Field(
        None,
        description="Evaluation texts: a file, folder or glob of `.txt` or `.jsonl` files, which may be compressed. By "
        "default, this step is off.",
    )
    text_field: str = Field(
        "text",
        description="Field of a JSON record that holds the text. `meta.body` is the field `body` inside `meta`.",
    )
    words: int = Field(
        13, gt=0, description="Drop documents that share a sequence of this many words with an evaluation text."
    )


class CleanSection(Section):
    """How text is cleaned, and which documents are dropped. [data.md](data.md#cleaning) describes each step."""

    headings: ClassVar[dict[str, str]] = {
        "fix_text": "Text",
        "min_chars": "Which documents to keep",
        "exact_dedup": "Duplicates",
    }

    fix_text: bool = Field(
        False, description="Fix mojibake with ftfy (`pip install ftfy`). Applies to chat examples too."
    )
    unicode: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="Unicode normalization form. Applies to chat examples too."
    )
    mask: tuple[Literal["email", "ip", "phone"], ...] = Field(
        (), description="Kinds of personal data to replace with placeholders."
    )
    min_chars: int = Field(50, ge=0, description="Drop documents with fewer characters than this.")
    max_chars: int = Field(200_000, gt=0, description="Drop documents with more characters than this.")
    languages: tuple[str, ...] | None = Field(
        None,
        description="Languages to keep, as ISO 639-1 codes (`pip install 'py3langid>=0.4'`). By default, all are kept.",
    )
    min_language_score: float = Field(0.65, ge=0.0, le=1.0, description="Minimum probability of the detected language.")
    c4: C4Section = C4Section()
    gopher_quality: GopherQualitySection = GopherQualitySection()
    gopher_repetition: GopherRepetitionSection = GopherRepetitionSection()
    decontaminate: DecontaminateSection = DecontaminateSection()
    exact_dedup: bool = Field(True, description="If several documents have the same text, keep only the first one.")
    line_dedup_chars: int = Field(
        0,
        ge=0,
        description="Remove repeated lines of at least this many characters, even across documents. 0 disables this.",
    )
    near_dedup: NearDuplicatesSection = NearDuplicatesSection()

    @model_validator(mode="after")
    def _fits(self) -> "CleanSection":
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        return self
