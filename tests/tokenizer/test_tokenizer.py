"""The tokenizer is lossless, safe from injected control tokens, and the same whenever it is trained."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from tests.support.paths import CHECKOUT, SHARED_DATA
from tests.support.pipeline.corpora import RECIPE, of_jsonl, overrides, texts, write_jsonl
from tests.support.tokenizers import publish_documents
from tokenizer import special_tokens
from tokenizer.registry import load_tokenizer
from tokenizer.train import _CHUNK_BYTES, _chunks, train


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("a\u2581b\u2581\u2581")
@example("tabs\t and\r\nreturns\r and \x00 NUL")
@example("  leading, trailing  \n\n ")
@example("\ufeff\u200b\U0001f600\u0301 𝔘𝔫𝔦 日本語")
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("ab \n\u2581é<|>"))))
def test_a_batch_equals_one_by_one(tokenizer, batch):
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_lone_surrogate_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_naughty_strings(tokenizer):
    path = SHARED_DATA / "naughty-strings.txt"
    if not path.exists():
        pytest.skip("no naughty-strings.txt next to the checkout")
    text = path.read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", [*special_tokens.RESERVED, *special_tokens.spare(8)])
def test_text_cannot_spell_a_control_token(tokenizer, name):
    ids = tokenizer.encode(f"x {name}{name} y")
    assert not any(tokenizer.is_reserved(token) for token in ids)
    assert tokenizer.decode(ids) == f"x {name}{name} y"


def test_reserved_ids(tokenizer):
    names = [tokenizer.piece(token) for token in range(16)]
    assert names == [*special_tokens.RESERVED, *special_tokens.spare(8)]
    assert all(tokenizer.is_reserved(token) for token in range(16))
    assert tokenizer.piece(tokenizer.end_of_text_id) == "<|endoftext|>"
    assert tokenizer.piece(tokenizer.end_of_turn_id) == "<|end|>"
    assert tokenizer.vocab_size == 400


def test_special_tokens_are_dropped_or_shown(tokenizer):
    ids = [special_tokens.USER_ID, *tokenizer.encode("hi there"), tokenizer.end_of_turn_id]
    assert tokenizer.decode(ids) == "hi there"
    assert tokenizer.decode(ids, show_special=True) == "<|user|>hi there<|end|>"


def test_an_id_beyond_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(RequestError, match="outside the vocabulary of 400"):
        tokenizer.decode([400])


def test_digits_and_newlines_stand_alone(tokenizer):
    assert len(tokenizer.encode("2024")) >= 4
    assert [tokenizer.piece(token) for token in tokenizer.encode("\n\n")] == ["\n", "\n"]


def test_training_again_gives_the_same_bytes(trained, tmp_path):
    source = Path(trained.data.source.path)
    again = of_jsonl(tmp_path, source)
    publish_documents(again)
    first, second = manifest.read(RunLayout.of(trained).tokenizer), train(again)
    assert second is not None and first == second
    assert train(again) is None


def test_cutting_long_texts_loses_nothing():
    text = "\n".join(["x" * 40_000, "é" * 9_000, "", "short", "", ""])
    pieces = list(_chunks(text))
    assert max(len(piece.encode()) for piece in pieces) <= _CHUNK_BYTES
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")


def test_long_documents_are_not_skipped(tmp_path):
    """A document without newlines, far longer than the trainer's limit, still contributes to the vocabulary."""
    body = " ".join(["zyxwvut"] * 10_000)
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "one.jsonl", [body, *texts(30)]))
    publish_documents(recipe)
    published = train(recipe)
    assert published is not None and published.counts["sample_documents"] == 31
    pieces = load_tokenizer(RunLayout.of(recipe).tokenizer).encode(" zyxwvut")
    assert len(pieces) == 1


def test_the_sample_has_about_the_requested_size(tmp_path):
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(80)), "tokenizer.sample_bytes=30000")
    publish_documents(recipe)
    published = train(recipe)
    assert published is not None and 25_000 < published.counts["sample_bytes"] <= 30_000


def test_a_too_large_vocabulary_gives_a_one_line_error(tmp_path):
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(2)), "tokenizer.vocab_size=4096")
    publish_documents(recipe)
    with pytest.raises(RequestError, match=r"tokenizer.vocab_size \(4096\) is too large .* at most \d+, or add"):
        train(recipe)


def test_documents_are_needed_first(tmp_path):
    with pytest.raises(RequestError, match="run `make data"):
        train(of_jsonl(tmp_path, tmp_path / "a.jsonl"))


def test_no_model_and_a_damaged_model(tmp_path):
    with pytest.raises(RequestError, match="make tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)


def _command(verb, trained, *arguments, **options):
    source_override = [f"data.source.kind=jsonl data.source.path={trained.data.source.path}"]
    source_override = overrides(Path(trained.run.root), *source_override[0].split())
    line = [sys.executable, "-m", "tokenizer", verb, "--recipe", str(RECIPE), *source_override, *arguments]
    return subprocess.run(line, cwd=CHECKOUT, capture_output=True, **options)


def test_commands(trained, tokenizer):
    text = "Hello <|user|>\r\n\tworld \u2581 é"
    encoded = _command("encode", trained, input=text.encode())
    assert encoded.returncode == 0, encoded.stderr
    assert [int(word) for word in encoded.stdout.split()] == tokenizer.encode(text)
    assert _command("decode", trained, input=encoded.stdout).stdout.decode() == text
    wrong = _command("decode", trained, "--text", "12 x")
    assert wrong.returncode == 2 and b"'x' is not a token id" in wrong.stderr
    shown = _command("inspect", trained)
    assert b"400 ids" in shown.stdout and b"bytes per token" in shown.stdout
    assert b"up to date" in _command("train", trained).stdout
