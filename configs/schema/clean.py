"""Cleaning: each step on or off, with the thresholds of the papers it comes from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section

#: Words of an n-gram.
_Words = Annotated[int, Field(ge=1, le=64)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


#: Share of the pairs right at the threshold that the bands must bring together.
_LEAST_FOUND = 0.75


class C4Section(Section):
    """Rules of C4 (Raffel et al. 2020, section 2.2): lines are removed, then documents judged."""

    enabled: bool = False
    require_end_mark: bool = Field(True, description="remove lines that do not end in . ? ! or a quotation mark")
    min_words_per_line: int = Field(3, ge=0, description="remove lines with fewer words; 0: keep")
    max_word_length: int = Field(1000, ge=0, description="remove lines with a longer word; 0: keep")
    remove_citations: bool = Field(True, description="cut Wikipedia's [1], [edit] and [citation needed]")
    remove_javascript: bool = Field(True, description="remove lines that mention javascript")
    remove_policy: bool = Field(True, description="remove lines about cookies, privacy policy and terms of use")
    drop_lorem_ipsum: bool = Field(True, description="drop documents with 'lorem ipsum' in a line that is left")
    drop_curly_bracket: bool = Field(True, description="drop documents with a { in a line that is left")
    min_sentences: int = Field(5, ge=0, description="drop documents with fewer sentences; 0: keep")


class GopherQualitySection(Section):
    """Quality rules of Gopher (Rae et al. 2021, table A1 and appendix A.1.1)."""

    enabled: bool = False
    min_words: int = Field(50, ge=0, description="drop documents with fewer words (those of marks only not counted)")
    max_words: int = Field(100_000, gt=0, description="drop documents with more words")
    min_mean_word_length: float = Field(3, ge=0, description="characters a word, those of marks only not counted")
    max_mean_word_length: float = Field(10, gt=0)
    max_symbol_word_ratio: float = Field(0.1, ge=0, description="hashes a word, and ellipses a word")
    max_bullet_lines: float = Field(0.9, ge=0.0, le=1.0, description="share of lines that begin with a bullet")
    max_ellipsis_lines: float = Field(0.3, ge=0.0, le=1.0, description="share of lines that end in an ellipsis")
    min_alphabetic_words: float = Field(0.8, ge=0.0, le=1.0, description="share of words with a letter")
    min_stop_words: int = Field(2, ge=0, description="of the, be, to, of, and, that, have, with")


class GopherRepetitionSection(Section):
    """Repetition rules of Gopher (Rae et al. 2021, table A1): shares above which a document is dropped."""

    enabled: bool = False
    duplicate_lines: float = Field(0.30, ge=0.0, le=1.0, description="lines that came before, of all lines")
    duplicate_paragraphs: float = Field(0.30, ge=0.0, le=1.0, description="the same of paragraphs")
    duplicate_line_chars: float = Field(0.20, ge=0.0, le=1.0, description="characters of such lines, of all characters")
    duplicate_paragraph_chars: float = Field(0.20, ge=0.0, le=1.0, description="the same of paragraphs")
    top_ngram_chars: dict[_Words, _Share] = Field(
        {2: 0.20, 3: 0.18, 4: 0.16}, description="words of an n-gram: characters in its most frequent one"
    )
    duplicate_ngram_chars: dict[_Words, _Share] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="words of an n-gram: characters in all that occur more than once",
    )


class NearDuplicatesSection(Section):
    """MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)."""

    enabled: bool = False
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of two near duplicates; estimates up to 2 standard errors below pass",
    )
    words: int = Field(5, gt=0, description="words of a shingle")
    bands: int = Field(20, gt=0, le=256, description="documents that agree in all rows of any band are compared")
    rows: int = Field(6, gt=0, le=64, description="hashes a band")

    @model_validator(mode="after")
    def _finds_pairs(self) -> "NearDuplicatesSection":
        found = 1 - (1 - self.threshold**self.rows) ** self.bands
        if found < _LEAST_FOUND:
            raise ValueError(
                f"{self.bands} bands of {self.rows} rows bring together only {found:.0%} of pairs with a similarity "
                f"of {self.threshold:g}: take fewer rows or more bands"
            )
        return self


class DecontaminateSection(Section):
    """Overlap with evaluation sets by word sequences (Brown et al. 2020, appendix C)."""

    path: OptionalPath = Field(
        None, description="evaluation texts: file, folder or glob of .txt, .jsonl (.gz, .zst); left out: off"
    )
    text_field: str = Field(
        "text", description="field of a jsonl record that holds the evaluation text; meta.body: body within meta"
    )
    words: int = Field(13, gt=0, description="a document that shares a sequence of so many words is dropped")


class CleanSection(Section):
    fix_text: bool = Field(False, description="mend mojibake with ftfy (pip install ftfy), in chat examples too")
    unicode: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="Unicode normalisation form, of documents and of chat examples"
    )
    min_chars: int = Field(50, ge=0, description="drop shorter documents")
    max_chars: int = Field(200_000, gt=0, description="drop longer documents")
    c4: C4Section = C4Section()
    gopher_quality: GopherQualitySection = GopherQualitySection()
    gopher_repetition: GopherRepetitionSection = GopherRepetitionSection()
    languages: tuple[str, ...] | None = Field(
        None, description="keep these languages (ISO 639-1) only (pip install 'py3langid>=0.4'); left out: all"
    )
    min_language_score: float = Field(0.65, ge=0.0, le=1.0, description="least probability of the language")
    mask: tuple[Literal["email", "ip", "phone"], ...] = Field(
        (), description="personal data replaced by a placeholder of the same kind"
    )
    exact_dedup: bool = Field(True, description="keep the first of documents with the same text")
    line_dedup_chars: int = Field(
        0, ge=0, description="remove later copies, in any document, of lines at least so long; 0: keep"
    )
    near_dedup: NearDuplicatesSection = NearDuplicatesSection()
    decontaminate: DecontaminateSection = DecontaminateSection()

    @model_validator(mode="after")
    def _fits(self) -> "CleanSection":
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars})")
        return self
