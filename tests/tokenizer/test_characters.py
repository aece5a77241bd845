"""The character tokenizer: every character of the documents has an id, and others get the unknown id."""

import json
import shutil
import subprocess
import sys

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.reports.verify import verify
from pipeline.tokens import stage as tokens
from pipeline.tokens.indexed_dataset import IndexedDataset
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, of_jsonl, overrides, recipe, texts, write_jsonl
from tests.support.tokenizers import publish_documents
from tokenizer import chat_template, special_tokens, training_sample
from tokenizer.characters import CharacterTokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.train import train

_ODD = "\u2581\u2028\x00 \t\r\n\u0301\u00e9\U0001f600\u65e5<|>"
_TEXTS = [*texts(30), _ODD, "<|endoftext|>"]
_CHARACTERS = sorted(set("".join(_TEXTS)))
_OVERRIDES = ("tokenizer.kind=characters", "tokenizer.vocab_size=100")


def characters_recipe(root, *more):
    """A recipe with built documents."""
    recipe = of_jsonl(root, write_jsonl(root / "source.jsonl", _TEXTS), *_OVERRIDES, *more)
    publish_documents(recipe)
    return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = characters_recipe(tmp_path_factory.mktemp("characters"))
    assert train(recipe) is not None
    return recipe


@pytest.fixture(scope="module")
def tokenizer(trained):
    return load_tokenizer(RunLayout.of(trained).tokenizer)


def test_ids_are_reserved_tokens_then_characters_in_code_point_order(trained, tokenizer):
    assert isinstance(tokenizer, CharacterTokenizer)
    names = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    assert names == [*special_tokens.RESERVED, *special_tokens.spare(8), *_CHARACTERS]
    assert [token for token in range(tokenizer.vocab_size) if tokenizer.is_reserved(token)] == list(range(16))
    assert tokenizer.stop_ids == {special_tokens.END_OF_TEXT_ID, special_tokens.END_OF_TURN_ID}
    published = manifest.read(RunLayout.of(trained).tokenizer)
    assert published.details["vocab_size"] == tokenizer.vocab_size < 100 and set(published.files) == {"characters.json"}
    assert published.counts["sample_documents"] == len(_TEXTS) and 1 < published.counts["bytes_per_token"] < 1.1


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(_CHARACTERS)))
@example(_ODD)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and not any(map(tokenizer.is_reserved, ids))
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), max_size=5), st.booleans(), st.sampled_from([pyarrow.string(), pyarrow.large_string()]))
def test_a_column_equals_one_by_one(tokenizer, batch, end, kind):
    expected = [tokenizer.encode(text) for text in batch]
    assert tokenizer.encode_batch(batch) == expected
    closing = [tokenizer.end_of_text_id] * end
    # The same from the middle of an array, and in two chunks.
    whole = pyarrow.array(["before", *batch], kind)[1:]
    for texts_ in (whole, pyarrow.chunked_array([whole[:2], whole[2:]], kind)):
        ids, lengths = tokenizer.encode_column(texts_, end)
        assert ids.tolist() == [token for ids_of_text in expected for token in (*ids_of_text, *closing)]
        assert lengths.tolist() == [len(ids_of_text) + end for ids_of_text in expected]
        assert ids.dtype == lengths.dtype == "int32"


def test_unknown_characters_and_lone_surrogates(tokenizer):
    ids = tokenizer.encode("a\u4e00b\ud800")
    assert [token == tokenizer.unknown_id for token in ids] == [False, True, False, True]
    assert tokenizer.decode(ids) == "ab" and tokenizer.decode(ids, show_special=True) == "a<unk>b<unk>"


def test_an_id_beyond_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(RequestError, match=f"outside the vocabulary of {tokenizer.vocab_size}"):
        tokenizer.decode([tokenizer.vocab_size])


def test_conversations(tokenizer):
    template = chat_template.load("millrace", tokenizer)
    ids, labels = template.render([{"role": "user", "content": "<|>"}, {"role": "assistant", "content": "a"}])
    assert tokenizer.decode(ids, show_special=True) == "<|begin|><|user|><|><|end|><|assistant|>a<|end|>"
    assert [label for label in labels if label != chat_template.IGNORED] == ids[-2:]


def test_every_document_counts_and_the_file_is_the_same(trained, tmp_path):
    """All characters are in the vocabulary, even with a sample of one document. The order does not matter."""
    shuffled = of_jsonl(tmp_path, write_jsonl(tmp_path / "source.jsonl", _TEXTS[::-1]), *_OVERRIDES)
    publish_documents(shuffled)
    (tmp_path / "small").mkdir()
    small = characters_recipe(tmp_path / "small", "tokenizer.sample_bytes=1")
    files = []
    for one in (trained, shuffled, small):
        train(one)
        assert train(one) is None
        files.append((RunLayout.of(one).tokenizer / "characters.json").read_bytes())
    assert len(set(files)) == 1 and files[0].isascii()
    assert len(training_sample.sample(RunLayout.of(small).documents, 1, 0)) == 1


def test_more_characters_than_fit_are_refused(tmp_path):
    needed = len(_CHARACTERS) + 16
    few = characters_recipe(tmp_path, f"tokenizer.vocab_size={needed - 1}")
    message = rf"vocab_size \({needed - 1}\) is too small .* its {len(_CHARACTERS)} distinct .* need {needed}: raise it"
    with pytest.raises(RequestError, match=message):
        train(few)
    published = train(characters_recipe(tmp_path, f"tokenizer.vocab_size={needed}"))
    assert published is not None and published.counts["vocab_size"] == needed


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values | {"characters": values["characters"][::-1]},
        lambda values: values | {"reserved": ["<pad>"]},
        lambda values: {"model": {}},
        lambda values: [],
    ],
)
def test_a_damaged_file_is_named(trained, tmp_path, change):
    folder = shutil.copytree(RunLayout.of(trained).tokenizer, tmp_path / "tokenizer")
    path = folder / "characters.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RequestError, match=r"not a character tokenizer.*repair: rm"):
        load_tokenizer(folder)


def test_the_data_stages_with_a_character_tokenizer(tmp_path):
    options = ("data.source.kind=patterns", "data.source.documents=40", *_OVERRIDES)
    small = recipe(tmp_path, *options)
    documents.build(small)
    train(small)
    published = tokens.build(small)
    layout = RunLayout.of(small)
    assert published is not None and tokens.build(small) is None
    assert published.details["vocab_size"] == 78 and published.details["dtype"] == "uint16"
    kept = parquet.read_table(layout.documents / "clean-00000.parquet")["text"].to_pylist()
    tokenizer = load_tokenizer(layout.tokenizer)
    shards = [IndexedDataset(layout.tokens / f"{side}-00000") for side in ("train", "val")]
    ids_of_documents = [shard.document(number) for shard in shards for number in range(len(shard))]
    assert all(ids[-1] == tokenizer.end_of_text_id for ids in ids_of_documents)
    assert sorted(map(tokenizer.decode, ids_of_documents)) == sorted(kept)
    assert not verify(small, str(RECIPE))[1]
    with pytest.raises(RequestError, match="was built with another recipe"):
        tokens.build(recipe(tmp_path, *options, "tokenizer.spare_tokens=0"))


def test_commands(trained, tokenizer):
    source = ("data.source.kind=jsonl", f"data.source.path={trained.data.source.path}")
    words = overrides(trained.run.root, *source, *_OVERRIDES)

    def command(verb, **options):
        line = [sys.executable, "-m", "tokenizer", verb, "--recipe", str(RECIPE), *words]
        return subprocess.run(line, cwd=CHECKOUT, capture_output=True, check=True, **options).stdout

    encoded = command("encode", input=_ODD.encode())
    assert [int(word) for word in encoded.split()] == tokenizer.encode(_ODD)
    assert command("decode", input=encoded).decode() == _ODD
    shown = command("inspect").decode()
    assert f"{tokenizer.vocab_size} ids" in shown and "measured on" in shown
    assert b"up to date" in command("train")
