"""Millrace's tokenizers in the format of the library ``tokenizers``: the same ids, and lossless."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.paths import SHARED_DATA
from tests.tokenizer.test_word_cache import _MIXED
from tokenizer import special_tokens
from tokenizer.bpe import BpeTokenizer
from tokenizer.huggingface import HuggingFaceTokenizer
from tokenizer.released import tokenizer_config, tokenizer_json

#: Characters of few kinds, so that pieces are runs, and the same piece has different merges.
_RUNS = st.text(alphabet=st.sampled_from("aab  --\n\u2581"), max_size=60)


@pytest.fixture(scope="module", params=["tokenizer", "many_scripts"])
def both(request: pytest.FixtureRequest) -> tuple[BpeTokenizer, HuggingFaceTokenizer]:
    ours = request.getfixturevalue(request.param)
    return ours, HuggingFaceTokenizer(tokenizer_json(ours), json.dumps(tokenizer_config(ours)))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), _MIXED, _RUNS))
@example("")
@example("  leading, trailing  \n\n\n ")
@example("\u2581a\u2581\u2581b \u2581")
@example("tabs\t and\r\nreturns\r and \x00 NUL <0x41>")
@example("2024 \U0001f600\u0301 𝔘𝔫𝔦 日本語 \ufeff")
@example("x" * 300 + " " * 300 + "\n" * 300 + "-" * 301)
def test_ids_are_the_same_for_any_text(both: tuple[BpeTokenizer, HuggingFaceTokenizer], text: str) -> None:
    ours, theirs = both
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


def test_ids_are_the_same_for_real_text(both: tuple[BpeTokenizer, HuggingFaceTokenizer]) -> None:
    names = ("tinyshakespeare.txt", "naughty-strings.txt", "instructions.json")
    files = [SHARED_DATA / name for name in names]
    if not all(path.exists() for path in files):
        pytest.skip("no texts next to the checkout")
    ours, theirs = both
    for path in files:
        text = path.read_text(encoding="utf-8")[:100_000]
        assert theirs.encode(text) == ours.encode(text), path.name
        assert theirs.decode(ours.encode(text)) == text


def test_transformers_reads_it_next_to_the_sentencepiece_model(
    both: tuple[BpeTokenizer, HuggingFaceTokenizer], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours, _ = both
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(ours), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(ours)))
    (tmp_path / "tokenizer.model").write_bytes(ours._pieces.serialized_model_proto())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " def f(x):\n\n\treturn  'a\u2581b' # 2024 é 日本 😀 \n"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == text
    assert set(theirs.all_special_ids) == {ours.unknown_id, ours.begin_id, ours.end_of_text_id, ours.pad_id}
    # The name of a reserved token is the token there, which chat templates need.
    assert theirs.encode(f"a{special_tokens.RESERVED[ours.end_of_turn_id]}")[-1] == ours.end_of_turn_id
    message_ids = [special_tokens.USER_ID, *ours.encode("hi\n"), ours.end_of_turn_id]
    assert theirs.decode(message_ids, skip_special_tokens=True) == "hi\n"
