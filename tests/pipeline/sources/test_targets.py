"""Documents with targets: the sources that have them, cleaning, and when two documents are equal."""

import csv
import gzip
import hashlib
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.reports.preview import preview
from pipeline.reports.rejected import rejected
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.csv import CsvSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.parallel import ParallelSource
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.pydocs import PydocsSource
from pipeline.sources.synthetic import base, sequences
from pipeline.sources.synthetic.base import ALPHABET
from pipeline.sources.synthetic.sequences import SequencesSource
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import of_jsonl, texts, write_jsonl
from tests.support.pipeline.supervised_corpora import CONFIGS, task_overrides, task_recipe, write_records
from tokenizer import training_sample
from tokenizer.registry import load_tokenizer
from tokenizer.train import train


def _read(source):
    bad = BadInputs()
    return [document for part in source.parts(1) for document in source.read(part, bad)], bad


def _pairs(documents_read):
    return [(document.text, document.target) for document in documents_read]


def _kept(recipe):
    return parquet.read_table(RunLayout.of(recipe).documents / "clean-00000.parquet").to_pylist()


_RECORDS = [("a", "x"), ("b", ""), ("c", None), ("d", 3), ("e", True), ("f", [1]), ("g", " \t"), ("h", "ü")]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text, "meta": {"label": target}}) for text, target in _RECORDS]
    path.write_text("\n".join([*lines, '{"text": "i"}', '{"meta": {"label": "x"}}']))
    documents_read, bad = _read(JsonlSource(str(path), "text", target_field="meta.label"))
    assert _pairs(documents_read) == [("a", "x"), ("d", "3"), ("e", "true"), ("h", "ü")]
    assert bad.good == 4 and dict(bad.reasons) == {
        "empty target": 3,
        "target field 'meta.label' is a list": 1,
        "target field 'meta.label' missing": 1,
        "field 'text' missing": 1,
    }
    assert bad.examples["empty target"][0] == f"a.jsonl at byte {len(lines[0]) + 1}"


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), ("x", "a"), ("", "b"), (" ", "c"), ("y,z", "d")])
    documents_read, bad = _read(CsvSource(str(path), "text", target_field="label"))
    assert _pairs(documents_read) == [("a", "x"), ("d", "y,z")]
    assert bad.good == 2 and bad.examples == {"empty target": ["a.csv record 2", "a.csv record 3"]}
    with pytest.raises(RequestError, match=r"data.source.target_field: a.csv has no column 'lable'; .*label, text"):
        _read(CsvSource(str(path), "text", target_field="lable"))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.int64(), pyarrow.dictionary(pyarrow.int8(), "string")])
def test_parquet(tmp_path, kind):
    options = [7, None, 9] if kind == pyarrow.int64() else ["7", "", "9"]
    table = pyarrow.table({"text": ["a", "b", "c"], "label": pyarrow.array(options, kind), "weight": [0.5, 1.5, 2.5]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    documents_read, bad = _read(ParquetSource(str(tmp_path / "a.parquet"), "text", "label"))
    assert _pairs(documents_read) == [("a", "7"), ("c", "9")]
    assert bad.good == 2 and bad.examples == {"empty target": ["a.parquet row 1"]}
    with pytest.raises(RequestError, match=r"data.source.target_field: column 'weight' of a.parquet is not text"):
        _read(ParquetSource(str(tmp_path / "a.parquet"), "text", "weight"))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()])
def test_a_parquet_target_that_is_not_utf8_loses_only_its_row(tmp_path, kind):
    offsets, data = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xffc")
    labels = pyarrow.Array.from_buffers(kind, 3, [None, offsets, data])
    parquet.write_table(pyarrow.table({"text": ["x", "y", "z"], "label": labels}), tmp_path / "a.parquet")
    documents_read, bad = _read(ParquetSource(str(tmp_path / "a.parquet"), "text", "label"))
    assert _pairs(documents_read) == [("x", "a"), ("z", "c")]
    assert bad.good == 2 and bad.examples == {"invalid UTF-8": ["a.parquet row 1"]}


def test_kinds_and_packages_of_documentation(tmp_path):
    plain, _ = _read(PydocsSource(tmp_path, ("json", "posixpath", "topics")))
    for what in ("kind", "package"):
        documents_read, _ = _read(PydocsSource(tmp_path, ("json", "posixpath", "topics"), what))
        assert [document.id for document in documents_read] == [document.id for document in plain]
        for before, after in zip(plain, documents_read, strict=True):
            first, _, rest = before.text.partition("\n\n")
            assert after.text == (before.text if before.kind == "topic" else rest) != ""
            assert before.target is None and after.target == (
                before.kind if what == "kind" else before.id[7:].split(".")[0]
            )
            assert before.kind == "topic" or first.removeprefix("class ").startswith(before.id[7:].partition("#")[0])
        assert {document.target for document in documents_read} == (
            {"topic", "module", "class", "function"} if what == "kind" else {"json", "os", "topics"}
        )


_LINE = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_LINE, _LINE), min_size=1, max_size=40), st.integers(1, 60), st.booleans(), st.booleans())
def test_parallel_lines_for_any_parts(tmp_path_factory, pairs, most, packed, windows):
    folder = tmp_path_factory.mktemp("parallel")
    ends = "\r\n" if windows else "\n"
    paths = []
    for name, side in zip(("a.en", "a.de.gz" if packed else "a.de"), zip(*pairs, strict=True), strict=True):
        content = "".join(line + ends for line in side).encode()
        paths.append(folder / name)
        paths[-1].write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = ParallelSource(str(paths[0]), str(paths[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParallelSource, "most_bytes", most)
        parts = list(source.parts(1))
        documents_read, bad = _read(source)
    assert sum(piece.lines for part in parts for piece in part.where) == len(pairs)
    first = [line.removeprefix("\ufeff") for line in pairs[0]]
    wanted = [(f"parallel:a.en:{number}", *pair) for number, pair in enumerate([first, *pairs[1:]], 1)]
    assert [(document.id, document.text, document.target) for document in documents_read] == [
        pair for pair in wanted if pair[2].strip()
    ]
    empty = sum(bool(text.strip()) and not target.strip() for _, text, target in wanted)
    assert bad.good == len(documents_read) and bad.reasons.get("empty target", 0) == empty


def test_long_parallel_files_are_divided_into_parts(tmp_path, monkeypatch):
    pairs = [(f"line {number}" * (number % 7), f"{number}") for number in range(500)]
    for name, side in zip("ab", zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("\n".join(side))
    monkeypatch.setattr(ParallelSource, "most_bytes", 1000)
    source = ParallelSource(str(tmp_path / "a"), str(tmp_path / "b"))
    assert 10 < len(list(source.parts(1))) < 20
    assert abs(sum(part.size for part in source.parts(1)) - source.size(1)) < 30
    assert _pairs(_read(source)[0]) == pairs


def test_parallel_files_are_paired_by_name(tmp_path):
    for side in ("en", "de"):
        (tmp_path / side).mkdir()
        for name in ("b", "a"):
            (tmp_path / side / f"{name}.{side}").write_text(f"{name} {side} 1\n{name} {side} 2")
    documents_read, _ = _read(ParallelSource(str(tmp_path / "en"), str(tmp_path / "de")))
    assert _pairs(documents_read) == [(f"{name} en {n}", f"{name} de {n}") for name in "ab" for n in (1, 2)]
    (tmp_path / "de" / "c.de").write_text("")
    with pytest.raises(RequestError, match=r"has 2 files and .*de 3: each file needs a target file"):
        list(ParallelSource(str(tmp_path / "en"), str(tmp_path / "de")).parts(1))


def test_other_encodings_and_damage(tmp_path):
    (tmp_path / "a").write_text("ä\nö\n", encoding="utf-16")
    (tmp_path / "b").write_text("ae\noe\n", encoding="utf-16")
    documents_read, _ = _read(ParallelSource(str(tmp_path / "a"), str(tmp_path / "b"), "utf-16"))
    assert _pairs(documents_read) == [("ä", "ae"), ("ö", "oe")]
    (tmp_path / "b").write_bytes(b"ae\n\xff\n")
    (tmp_path / "a").write_text("ä\nö\n", encoding="utf-8")
    documents_read, bad = _read(ParallelSource(str(tmp_path / "a"), str(tmp_path / "b")))
    assert _pairs(documents_read) == [("ä", "ae")] and bad.examples == {"invalid UTF-8": ["b line 2"]}


def test_the_lines_before_damage_still_belong_together(tmp_path):
    (tmp_path / "a").write_text("".join(f"line {number}\n" for number in range(900)))
    whole = gzip.compress("".join(f"target {number}\n" for number in range(900)).encode())
    (tmp_path / "b.gz").write_bytes(whole[: len(whole) // 2])
    source = ParallelSource(str(tmp_path / "a"), str(tmp_path / "b.gz"))
    documents_read, bad = _read(source)
    assert 300 < len(documents_read) < 600 and _pairs(documents_read)[-1] == (
        f"line {len(documents_read) - 1}",
        f"target {len(documents_read) - 1}",
    )
    assert bad.examples == {"unreadable file": ["b.gz: it is truncated"]} and 0 < bad.lost_bytes <= bad.bytes
    (tmp_path / "b.gz").write_bytes(whole + b"garbage")
    assert len(_read(source)[0]) == 900
    # Damage never gives a file more lines than the intact file next to it.
    (tmp_path / "a").write_text("line\n" * 50)
    with pytest.raises(RequestError, match=r"a has 50 lines and .*b.gz 900"):
        list(source.parts(1))
    (tmp_path / "b.gz").unlink()
    (tmp_path / "b.gz").symlink_to("gone")
    documents_read, bad = _read(source)
    assert not documents_read and bad.reasons == {"unreadable file": 1}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(2, 40), st.integers(0, 30), st.integers(2, 62), st.integers(0), st.integers(1, 500)
)
def test_sequences_follow_the_settings_for_any_parts(count, least, more, symbols, seed, part_bytes):
    source = SequencesSource(count, least, least + more, symbols, "reverse", seed)
    documents_read, bad = _read(source)
    assert bad.good == len(documents_read) == count and not bad.reasons
    for document in documents_read:
        assert document.target == document.text[::-1] and least <= len(document.text) <= least + more
        assert set(document.text) <= set(ALPHABET[:symbols])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_PART_BYTES", part_bytes)
        patch.setattr(sequences, "_DRAWN", part_bytes)
        assert _read(source)[0] == documents_read
    copied, _ = _read(SequencesSource(2 * count, least, least + more, symbols, "copy", seed))
    assert _pairs(copied[:count]) == [(document.text, document.text) for document in documents_read]


def test_every_letter_and_length_occurs_equally_often():
    documents_read, _ = _read(SequencesSource(20_000, 4, 7, 26, "copy", 3))
    lengths = [len(document.text) for document in documents_read]
    assert all(4700 < lengths.count(length) < 5300 for length in (4, 5, 6, 7))
    letters = "".join(document.text for document in documents_read)
    assert all(0.95 < 26 * letters.count(letter) / len(letters) < 1.05 for letter in ALPHABET[:26])
    assert len({document.text for document in documents_read if len(document.text) == 7}) == lengths.count(7)


def test_a_digest_covers_the_target(tmp_path):
    records = [("one", "1"), ("one", "2"), ("one", " 1"), ("on\u0065\u0301", "cafe\u0301\r\n"), ("two", "1")]
    recipe = task_recipe(tmp_path, "seq2seq", *write_records(tmp_path / "a.jsonl", records))
    published = documents.build(recipe)
    assert published.counts["dropped"] == {"the same text as an earlier document": 1}
    kept = _kept(recipe)
    # Targets are cleaned like texts.
    assert [(row["text"], row["target"]) for row in kept] == [
        ("one", "1"), ("one", "2"), ("oné", "café"), ("two", "1")
    ]  # fmt: skip
    assert len({row["digest"] for row in kept}) == 4 and [row["bytes"] for row in kept] == [3, 3, 4, 3]
    shown = "\n".join(rejected(recipe, None, 10))
    assert "jsonl:a.jsonl:" in shown
    table = parquet.read_table(RunLayout.of(recipe).documents / "rejected-00000.parquet")
    assert table["target"].to_pylist() == [" 1"]
    assert any("jsonl" in line for line in preview(recipe, 3))


def test_personal_data_is_masked_in_targets(tmp_path):
    records = [("write to me", "at someone@somewhere.de"), ("or not", "at all")]
    options = write_records(tmp_path / "a.jsonl", records)
    recipe = task_recipe(tmp_path, "seq2seq", *options, "data.clean.mask=[email]")
    published = documents.build(recipe)
    assert published.counts["masked"] == {"email": 1}
    assert "somewhere" not in _kept(recipe)[0]["target"]


def test_documents_without_targets_are_unchanged(tmp_path):
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(30)))
    documents.build(recipe)
    for row in _kept(recipe):
        assert row["target"] is None and row["digest"] == hashlib.sha256(row["text"].encode()).digest()[:16]


def test_lines_removed_leave_the_target(tmp_path):
    line = "a line that is long enough to be looked at in every document of them all"
    records = [(f"{line}\nand {n} of its own", f"target {n}") for n in range(5)]
    options = write_records(tmp_path / "a.jsonl", records)
    recipe = task_recipe(tmp_path, "seq2seq", *options, "data.clean.line_dedup_chars=40")
    documents.build(recipe)
    kept = _kept(recipe)
    assert [row["text"] for row in kept][1:] == [f"and {n} of its own" for n in range(1, 5)]
    assert [row["target"] for row in kept] == [f"target {n}" for n in range(5)]
    both = [hashlib.sha256(row[name].encode()).digest() for row in kept[1:2] for name in ("text", "target")]
    assert kept[1]["digest"] == both[0][:8] + hashlib.sha256(both[0] + both[1]).digest()[:8]


def test_tokenizers_are_trained_on_targets_that_are_text(tmp_path):
    options = write_records(tmp_path / "a.jsonl", [("abc" * 3 + str(n), "xyz" * 3 + str(n)) for n in range(4)])
    letters = {}
    for task in ("seq2seq", "sequence_classification"):
        recipe = task_recipe(
            tmp_path / task, task, *options, *(["model.classes=4"] if task == "sequence_classification" else [])
        )
        documents.build(recipe)
        train(recipe)
        folder = RunLayout.of(recipe).tokenizer
        letters[task] = {piece for piece in "abcxyz0" if load_tokenizer(folder).encode(piece) != [0]}
    assert letters == {"seq2seq": set("abcxyz0"), "sequence_classification": set("abc0")}
    folder = RunLayout.of(recipe).documents
    assert training_sample.sample(folder, 10**6, 1, targets=True)[0] == "abcabcabc0\nxyzxyzxyz0"
    # Targets count toward the budget.
    assert (
        len(training_sample.sample(folder, 25, 1)) == 2
        and len(training_sample.sample(folder, 25, 1, targets=True)) == 1
    )


def test_a_finished_corpus_needs_no_source_files(tmp_path):
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("one\ntwo\n")
    source = f"data.source={{kind: parallel, path: {tmp_path}/a.en, target_path: {tmp_path}/a.de}}"
    recipe = task_recipe(tmp_path, "seq2seq", source)
    assert documents.build(recipe) is not None and documents.build(recipe) is None
    (tmp_path / "a.de").write_text("one\nTWO\n")
    assert documents.build(recipe) is not None
    (tmp_path / "a.de").unlink()
    assert documents.build(recipe) is None


def test_files_of_different_length_give_a_one_line_error(tmp_path):
    (tmp_path / "a.en").write_text("line\n" * 1000)
    (tmp_path / "a.de").write_text("line\n" * 999)
    source = f"data.source={{kind: parallel, path: {tmp_path}/a.en, target_path: {tmp_path}/a.de}}"
    line = ["run", "--recipe", str(CONFIGS / "seq2seq-reverse.yaml"), *task_overrides(tmp_path, source)]
    done = subprocess.run([sys.executable, "-m", "pipeline", *line], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path}/a.en has 1,000 lines and {tmp_path}/a.de 999: " in message and "data.source" in message
