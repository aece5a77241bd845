"""The cleaning rules in order: what they keep, what they drop and why, language detection and decontamination."""

import gzip
import json
import sys

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from configs.schema.clean import CleanSection
from pipeline.cleaning import cleaner
from pipeline.cleaning.cleaner import TOO_LONG, TOO_SHORT, Cleaner
from pipeline.cleaning.normalize import normalize
from pipeline.documents import ingest
from tests.support.pipeline.texts import column, openwebtext, texts

ENGLISH = "The committee met on Tuesday and decided that the bridge should be repaired before the winter comes. "
GERMAN = "Der Ausschuss traf sich am Dienstag und beschloss, dass die Brücke vor dem Winter repariert werden soll. "


def _cleaned(batch, **keys):
    """Return the cleaned texts and the reasons."""
    cleaned = Cleaner(CleanSection(**{"min_chars": 0, **keys}))(pyarrow.array(batch, pyarrow.string()))
    assert cleaned.texts.type == pyarrow.large_string() and cleaned.reasons.type == pyarrow.string()
    return cleaned.texts.to_pylist(), cleaned.reasons.to_pylist()


@settings(deadline=None)
@given(st.lists(texts, max_size=6), st.integers(0, 20), st.integers(20, 40))
def test_by_default_texts_are_normalized_and_measured(batch, least, most):
    wanted = [normalize(text, "NFC") for text in batch]
    cleaned, reasons = _cleaned(batch, min_chars=least, max_chars=most)
    assert cleaned == wanted
    assert reasons == [
        TOO_SHORT if len(text) < max(least, 1) else TOO_LONG if len(text) > most else None for text in wanted
    ]


def test_lengths_are_in_characters():
    assert _cleaned(["é" * n for n in (0, 2, 3, 5, 6)], min_chars=3, max_chars=5)[1] == [
        TOO_SHORT,
        TOO_SHORT,
        None,
        None,
        TOO_LONG,
    ]


def test_no_documents():
    every = {"enabled": True}
    keys = {"c4": every, "gopher_quality": every, "gopher_repetition": every, "mask": ("email",)}
    assert _cleaned([], **keys) == ([], [])
    assert _cleaned([" "], **keys) == ([""], [TOO_SHORT])


def test_the_first_rule_is_the_reason_and_later_ones_see_what_is_left():
    prose = "\n".join(f"{ENGLISH}That is what number {n} of the report says to us." for n in range(6))
    batch = ["tiny", "# " * 60, "menu\n" + prose, prose.replace("says", "{says}"), prose + "\nMail me at a@b.de today."]
    cleaned, reasons = _cleaned(
        batch, c4={"enabled": True}, gopher_quality={"enabled": True}, min_chars=5, mask=("email",)
    )
    assert reasons == [
        TOO_SHORT,
        "fewer sentences than data.clean.c4.min_sentences",
        None,
        "a curly bracket (data.clean.c4.drop_curly_bracket)",
        None,
    ]
    assert cleaned[:2] == ["tiny", ("# " * 60).strip()] and cleaned[3] == batch[3]
    assert cleaned[2] == prose.replace(". T", ". T") and cleaned[4].endswith("Mail me at email@example.com today.")


def test_length_is_checked_again_after_editing():
    line = "This is a line of the document that stays here."
    batch = [line + "\n" + "menu entry\n" * 20]
    assert _cleaned(batch, c4={"enabled": True, "min_sentences": 1}, min_chars=60) == ([line], [TOO_SHORT])


def test_slices_change_nothing(monkeypatch):
    batch = [ENGLISH * n + "\n\n" + GERMAN * (n % 3) for n in range(1, 30)]
    keys = {"gopher_quality": {"enabled": True}, "gopher_repetition": {"enabled": True}, "c4": {"enabled": True}}
    whole = _cleaned(batch, **keys)
    monkeypatch.setattr(cleaner, "_SLICE", 2_000)
    assert _cleaned(batch, **keys) == whole
    assert len(set(whole[1])) > 1


def test_languages():
    pytest.importorskip("py3langid")
    reasons = _cleaned([ENGLISH, GERMAN, "1 2 3"], languages=("en",))[1]
    assert reasons[:2] == [None, "a language that is not in data.clean.languages"] and reasons[2]
    assert _cleaned([ENGLISH, GERMAN], languages=("en", "de"))[1] == [None, None]
    doubtful = _cleaned(["Hello no the si"], languages=("en",), min_language_score=1.0)[1]
    assert doubtful != [None]
    with pytest.raises(RequestError, match=r"'eng' is not one of the \d+ .*; the nearest are en, [a-z, ]{,8}$"):
        Cleaner(CleanSection(languages=("eng",)))


def test_without_py3langid(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(RequestError, match="pip install"):
        Cleaner(CleanSection(languages=("en",)))


QUESTION = "Which of the three rivers that cross the old town is the longest one of all?"


def _evaluation_files(folder):
    folder.mkdir()
    long = "a question about the number of bridges over the four rivers of a town"
    (folder / "a.jsonl").write_text(json.dumps({"question": "short one"}) + "\n\n" + json.dumps({"question": long}))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": QUESTION}) + "\n")
    (folder / "c.txt.zst").write_bytes(
        zstandard.compress(b"A poem of some words about the sea and the wind and the long way home.")
    )
    (folder / "notes.md").write_text("not read")
    return folder


def test_decontamination(tmp_path):
    folder = _evaluation_files(tmp_path / "evaluation")
    corpus = [
        ENGLISH,
        f"{ENGLISH}{QUESTION.upper()} {GERMAN}",
        f"{ENGLISH}Which of the three rivers that cross the old town is LONG?",
        "…the sea, and the wind, and the long way home",
        "words about the sea and the wind and the long way",
    ]
    reason = "shares a word sequence with data.clean.decontaminate.path"
    keys = {"text_field": "question", "words": 10}
    wanted = [None, reason, reason, reason, reason]
    assert _cleaned(corpus, decontaminate={"path": str(folder), **keys})[1] == wanted
    by_pattern = {"path": str(folder / "*.jsonl.gz"), **keys}
    assert _cleaned(corpus, decontaminate=by_pattern)[1] == [None, reason, reason, None, None]
    assert _cleaned(corpus, decontaminate={**by_pattern, "words": 13})[1] == [None, reason, None, None, None]


def test_evaluation_texts_that_are_too_short(tmp_path, capfd):
    folder = _evaluation_files(tmp_path / "evaluation")
    keys = {"text_field": "question", "words": 10}
    section = CleanSection(decontaminate={"path": str(folder), **keys})
    lines = Cleaner(section).warnings
    assert len(lines) == 1 and lines[0].startswith("a.jsonl: 1 of 2 texts are shorter than 10 words and cannot be")
    ingest.prepare(section)
    assert not capfd.readouterr().err
    ingest.prepare(section, warn=True)
    assert capfd.readouterr().err == lines[0] + "\n"
    assert not Cleaner(CleanSection(decontaminate={"path": str(folder), **keys, "words": 2})).warnings
    (folder / "one.txt").write_text("a poem")
    assert f"{folder}: 1 of 2 texts" in Cleaner(section).warnings[1]
    (folder / "d.jsonl").write_text(json.dumps({"question": "short"}) + "\n" + json.dumps({"question": ""}))
    with pytest.raises(RequestError, match=r"path: d\.jsonl: all texts are shorter than 10 words"):
        Cleaner(section)


def test_evaluation_texts_within_other_fields(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"meta": {"body": QUESTION}}))
    keys = {"path": str(tmp_path), "text_field": "meta.body"}
    assert _cleaned([ENGLISH, ENGLISH + QUESTION], decontaminate=keys)[1][0] is None
    assert _cleaned([ENGLISH, ENGLISH + QUESTION], decontaminate=keys)[1][1] is not None


def test_missing_evaluation_texts(tmp_path):
    with pytest.raises(RequestError, match=r"^data\.clean\.decontaminate\.path: .*nowhere is neither a file nor"):
        Cleaner(CleanSection(decontaminate={"path": str(tmp_path / "nowhere")}))
    folder = _evaluation_files(tmp_path / "evaluation")
    with pytest.raises(RequestError, match=r"a\.jsonl:1: no text field 'text'"):
        Cleaner(CleanSection(decontaminate={"path": str(folder)}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.zst", zstandard.compress(b'{"text": "some words"}\n' * 9999)[:-9], "cannot be read"),
        ("a.jsonl.zst", b"plainly something else", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "some words"}\n' * 9999)[:-9], "cannot be read"),
        ("a.txt.xz", b"plainly something else", "cannot be read"),
        ("a.txt", b"caf\xe9", "is not UTF-8: byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{broken', "malformed record"),
        ("a.jsonl", b"[1]", "no text field 'text'"),
        ("a.jsonl", b'{"text": 1}', "no text field 'text'"),
        ("a.jsonl", b"\n", "has no text"),
        ("a.txt", b"", "has no text"),
    ],
)
def test_damaged_evaluation_texts(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=rf"^data\.clean\.decontaminate\.path: {name}.*{says}[^\n]*$"):
        Cleaner(CleanSection(decontaminate={"path": str(tmp_path)}))


def test_real_documents_have_reasons():
    corpus = [normalize(text, "NFC") for text in openwebtext()]
    section = CleanSection(gopher_quality={"enabled": True}, gopher_repetition={"enabled": True})
    cleaned = Cleaner(section)(column(corpus))
    assert cleaned.texts.to_pylist() == corpus
    assert cleaned.reasons.null_count == 456
