"""A pretrained tokenizer in Hugging Face's format: a file, a folder in either layout, or a hub that is unreachable."""

import json
import os
import subprocess
import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, of_jsonl, overrides, texts, write_jsonl
from tests.support.tokenizers import publish_documents
from tokenizer import chat_template, pretrained
from tokenizer import pretrained as ready_module
from tokenizer.huggingface import HuggingFaceTokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.train import outcome, train

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    """A small byte-level BPE in GPT-2's layout, and the same as tokenizer.json."""
    root = tmp_path_factory.mktemp("repositories")
    older, newer = root / "older", root / "newer"
    older.mkdir()
    newer.mkdir()
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts(60), vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(older))
    bpe.save(str(newer / "tokenizer.json"))
    return {"older": older, "newer": newer, "file": newer / "tokenizer.json"}


def taken(root, path, *more):
    """A recipe with a pretrained tokenizer, and with built documents."""
    options = (
        "tokenizer.kind=huggingface",
        f"tokenizer.path={path}",
        "tokenizer.vocab_size=32000",
        "model.vocab_size=500",
        *more,
    )
    recipe = of_jsonl(root, write_jsonl(root / "source.jsonl", texts(30)), *options)
    publish_documents(recipe)
    return recipe


@pytest.fixture(scope="session")
def ready(repositories, tmp_path_factory):
    recipe = taken(tmp_path_factory.mktemp("ready"), repositories["older"])
    assert train(recipe) is not None
    return recipe


@pytest.fixture(scope="session")
def loaded(ready):
    return load_tokenizer(RunLayout.of(ready).tokenizer)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec=None)), max_size=4))
def test_loses_nothing_and_a_column_equals_one_by_one(loaded, documents):
    documents = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in documents]
    expected = [loaded.encode(text) for text in documents]
    assert [loaded.decode(ids) for ids in expected] == documents
    assert loaded.encode_batch(documents) == expected
    for end in (True, False):
        ids, lengths = loaded.encode_column(pyarrow.array(documents, pyarrow.string()), end)
        closing = [loaded.end_of_text_id] * end
        assert ids.tolist() == [token for ids_of_text in expected for token in (*ids_of_text, *closing)]
        assert lengths.tolist() == [len(ids_of_text) + end for ids_of_text in expected]


def test_text_cannot_spell_a_special_token(loaded):
    ids = loaded.encode("x <|endoftext|> y")
    assert loaded.end_of_text_id not in ids and loaded.decode(ids) == "x <|endoftext|> y"


@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_text_cannot_spell_a_special_token_that_the_model_knows(kind):
    models, known = tokenizers.models, ["<unk>", "</s>", "#", *"abs</>"]
    if kind == "unigram":
        model = models.Unigram([(piece, -float(number)) for number, piece in enumerate(known)], 0, False)
    else:
        model = models.WordLevel({piece: number for number, piece in enumerate(known)}, "<unk>")
    pieces = tokenizers.Tokenizer(model)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    pieces.add_special_tokens(known[:3])
    tokenizer = HuggingFaceTokenizer(pieces.to_str(), '{"eos_token": "</s>"}')
    text = "a </s></s> # b"
    assert tokenizer.end_of_text_id == 1 and tokenizer.decode([1], show_special=True) == "</s>"
    ids = tokenizer.encode(text)
    assert not {1, 2} & {*ids} and ids[0] == 3 and ids[-1] == 4 and len(ids) > 2
    assert tokenizer.encode_batch([text, "a b"]) == [ids, [3, 4]]


def test_special_tokens_are_dropped_or_shown(loaded):
    ids = [*loaded.encode("hi there"), loaded.end_of_text_id]
    assert loaded.decode(ids) == "hi there"
    assert loaded.decode(ids, show_special=True) == "hi there<|endoftext|>"
    assert loaded.is_reserved(loaded.end_of_text_id) and not loaded.is_reserved(ids[0])
    with pytest.raises(RequestError, match=f"outside the vocabulary of {loaded.vocab_size}"):
        loaded.decode([loaded.vocab_size])


def test_vocabulary(loaded):
    assert loaded.vocab_size == 500
    assert loaded.piece(loaded.end_of_text_id) == "<|endoftext|>"
    assert sum(loaded.is_byte(token) for token in range(500)) == 256
    assert loaded.stop_ids == {loaded.end_of_text_id}
    assert loaded.decode(loaded.encode("a\ud800b")) == "a\ufffdb"


def test_manifest(ready, loaded):
    published = manifest.read(RunLayout.of(ready).tokenizer)
    assert published.details == {"vocab_size": 500, "reserved": ["<|endoftext|>"]}
    assert set(published.files) == {"tokenizer.json"} and published.counts["bytes_per_token"] > 1.5
    assert "500 pieces" in outcome(published, ready)


def test_layouts_give_the_same(repositories, loaded):
    for name in ("older", "newer", "file"):
        tokenizer, contents = pretrained.read(pretrained.files(str(repositories[name])), name)
        assert list(contents) == ["tokenizer.json"]
        assert tokenizer.encode("a bamo  \n\u2581é") == loaded.encode("a bamo  \n\u2581é")


def test_the_artefact_does_not_depend_on_the_location(repositories, tmp_path):
    recipe = taken(tmp_path, repositories["newer"])
    assert train(recipe) is not None
    assert train(taken(tmp_path, repositories["file"])) is None
    assert train(taken(tmp_path, repositories["older"])) is not None


def test_end_of_text_by_configuration(repositories, tmp_path):
    content = json.loads(repositories["file"].read_text())
    content["added_tokens"][0]["content"] = "<stop>"
    content["model"]["vocab"]["<stop>"] = content["model"]["vocab"].pop("<|endoftext|>")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"tokenizer.path=.*no token to end a document"):
        train(taken(tmp_path, folder))
    for named in ("<stop>", {"content": "<stop>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}))
        recipe = taken(tmp_path, folder)
        train(recipe)
        loaded = load_tokenizer(RunLayout.of(recipe).tokenizer)
        assert loaded.piece(loaded.end_of_text_id) == "<stop>"


def test_no_conversations(loaded):
    assert not loaded.has_chat_tokens
    with pytest.raises(RequestError, match="chat tokens"):
        chat_template.load("millrace", loaded)
    assert loaded.pad_id == loaded.end_of_text_id
    for name in ("begin_id", "end_of_turn_id"):
        with pytest.raises(RequestError, match="chat tokens"):
            getattr(loaded, name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "not a tokenizer in Hugging Face's format"),
        ("tokenizer.json", "half", "not a tokenizer in Hugging Face's format"),
        ("vocab.json", "{}", "it has neither tokenizer.json nor vocab.json and merges.txt"),
    ],
)
def test_files_that_are_not_tokenizers_are_rejected(tmp_path, name, content, message):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        train(taken(tmp_path, tmp_path / "repository"))


def test_a_damaged_older_layout_is_refused(repositories, tmp_path):
    (tmp_path / "vocab.json").write_text("half")
    (tmp_path / "merges.txt").write_text((repositories["older"] / "merges.txt").read_text())
    with pytest.raises(RequestError, match=r"tokenizer.path="):
        train(taken(tmp_path, tmp_path))


def test_a_missing_tokenizer(tmp_path):
    with pytest.raises(RequestError, match="no such file or folder"):
        train(taken(tmp_path, tmp_path / "nowhere"))


def test_more_ids_than_the_model_has_rows(repositories, tmp_path):
    with pytest.raises(
        RequestError, match=r"has 500 ids, but the model's vocabulary only 499: set model.vocab_size=500"
    ):
        train(taken(tmp_path, repositories["file"], "model.vocab_size=499"))


def test_a_damaged_artefact_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(RequestError, match=r"tokenizer.json: not UTF-8; repair: rm -r"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"), [("./nowhere", "no such file"), ("{}", "it has neither"), ("{}/a.json", "not a")]
)
def test_a_run_refuses_it_before_it_reads_documents(tmp_path, path, message):
    (tmp_path / "a.json").write_text("{}")
    source = write_jsonl(tmp_path / "source.jsonl", texts(5))
    options = overrides(tmp_path, "data.source.kind=jsonl", f"data.source.path={source}", "tokenizer.kind=huggingface")
    line = [sys.executable, "-m", "pipeline", "run", "--recipe", str(RECIPE), *options]
    done = subprocess.run(
        [*line, f"tokenizer.path={path.format(tmp_path)}"], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: tokenizer.path=") and message in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "demo").exists()


def test_a_finished_tokenizer_is_not_fetched_again(ready, monkeypatch):
    ready_module.check(ready)
    monkeypatch.setattr(ready_module, "_read", lambda *arguments: pytest.fail("read again"))
    ready_module.check(ready)


def _command(verb, ready, *arguments, **options):
    source = [f"data.source.kind=jsonl data.source.path={ready.data.source.path}", "tokenizer.kind=huggingface"]
    words = overrides(ready.run.root, *" ".join(source).split(), f"tokenizer.path={ready.tokenizer.path}")
    line = [sys.executable, "-m", "tokenizer", verb, "--recipe", str(RECIPE), *words, *arguments]
    return subprocess.run(line, cwd=CHECKOUT, capture_output=True, **options)


def test_commands(ready, loaded):
    text = "Hello <|endoftext|>\r\n\tworld é"
    encoded = _command("encode", ready, input=text.encode())
    assert [int(word) for word in encoded.stdout.split()] == loaded.encode(text)
    assert _command("decode", ready, input=encoded.stdout).stdout.decode() == text
    shown = _command("inspect", ready)
    assert b"500 ids" in shown.stdout and b"measured on" in shown.stdout
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(ready.run.root)}
    refused = _command("train", ready, "tokenizer.path=nobody/nothing", env=offline)
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1
    assert b"error: tokenizer.path=nobody/nothing is neither a local path nor a repository" in refused.stderr
