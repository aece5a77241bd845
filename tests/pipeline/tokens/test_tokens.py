"""Token shards: their content, the split of documents, and the same bytes for any workers and tasks."""

import sys

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.hashing import lowest
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.parallel import TaskShard
from pipeline.tokens import stage as tokens
from pipeline.tokens.held_out import Thresholds
from pipeline.tokens.indexed_dataset import IndexedDataset
from tests.support.pipeline.corpora import digests, of_jsonl, recipe, texts, write_jsonl
from tokenizer.registry import load_tokenizer
from tokenizer.train import train


def _built(root, corpus, *overrides):
    recipe = of_jsonl(root, write_jsonl(root / "a.jsonl", corpus), *overrides)
    documents.build(recipe)
    train(recipe)
    return recipe, tokens.build(recipe)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    return _built(root, texts(300), "data.tokens.shard_tokens=20000")


def _shards(folder, name):
    return [IndexedDataset(path.with_suffix("")) for path in sorted(folder.glob(f"{name}-*.idx"))]


def test_shards_hold_every_document_once(built):
    recipe, published = built
    layout = RunLayout.of(recipe)
    tokenizer = load_tokenizer(layout.tokenizer)
    ids_by_side = {name: [] for name in ("train", "val")}
    for name, decoded in ids_by_side.items():
        for shard in _shards(layout.tokens, name):
            for number in range(len(shard)):
                ids = shard.document(number).tolist()
                assert ids[-1] == tokenizer.end_of_text_id and tokenizer.end_of_text_id not in ids[:-1]
                decoded.append(tokenizer.decode(ids))
    assert sorted(ids_by_side["train"] + ids_by_side["val"]) == sorted(texts(300))
    order = {text: place for place, text in enumerate(texts(300))}
    for decoded in ids_by_side.values():
        assert decoded == sorted(decoded, key=order.__getitem__)
    for name, side in (("train", "train"), ("val", "validation")):
        counts = published.counts[side]
        assert counts["documents"] == len(ids_by_side[name])
        assert counts["bytes"] == sum(len(text.encode()) for text in ids_by_side[name])
        assert counts["tokens"] == sum(len(shard.tokens) for shard in _shards(layout.tokens, name))


def test_shards_have_the_requested_size(built):
    recipe, published = built
    sizes = [len(shard.tokens) for shard in _shards(RunLayout.of(recipe).tokens, "train")]
    assert published.counts["train"]["shards"] == len(sizes) > 3
    assert all(20_000 <= size < 22_000 for size in sizes[:-1]) and sizes[-1] <= 22_000
    assert {shard.tokens.dtype for shard in _shards(RunLayout.of(recipe).tokens, "train")} == {np.dtype("<u2")}


def test_the_manifest_contains_what_readers_need(built):
    recipe, published = built
    layout = RunLayout.of(recipe)
    assert published == manifest.read(layout.tokens)
    assert published.details["vocab_size"] == 400 and published.details["dtype"] == "uint16"
    assert published.details["tokenizer"] == manifest.read(layout.tokenizer).fingerprint
    assert tokens.build(recipe) is None


def test_the_same_bytes_with_any_number_of_workers(built, tmp_path):
    recipe, _ = built
    other, _ = _built(tmp_path, texts(300), "data.tokens.shard_tokens=20000", "data.workers=2")
    assert digests(RunLayout.of(other).tokens) == digests(RunLayout.of(recipe).tokens)


def test_a_document_falls_on_the_same_side_in_every_corpus():
    digests = [bytes([number]) * 16 for number in range(200)]

    def held_out(digests, seed, fraction):
        thresholds = Thresholds(seed, {"web": int(fraction * 2**64)}, [], 0)
        return thresholds.held_out("web", pyarrow.chunked_array([digests], pyarrow.binary(16)))

    chosen = held_out(digests, 7, 0.2)
    assert 20 < chosen.sum() < 60
    assert (held_out(digests[::-1], 7, 0.2)[::-1] == chosen).all()
    assert (held_out(digests, 8, 0.2) != chosen).any()
    assert (held_out(digests, 7, 0.4) | ~chosen).all()


def test_a_small_corpus_gets_one_validation_document(tmp_path, capsys):
    chosen, forced = lowest(np.array([5, 3, 9], np.uint64) << np.uint64(60), 1e-9)
    assert chosen.tolist() == [False, True, False] and forced
    _, corpus = _built(tmp_path, texts(12), "data.tokens.validation_fraction=1e-9")
    assert corpus.counts["validation"]["documents"] == 1 and corpus.counts["train"]["documents"] == 11
    assert "lowest hash is held out" in capsys.readouterr().out and corpus.details["forced_validation"]


@pytest.mark.parametrize(
    "override", ["data.tokens.validation_fraction=0", f"run.seed={2**63}", f"generate.seed={2**64}"]
)
def test_no_validation_and_seeds_beyond_63_bits_are_refused(tmp_path, override):
    with pytest.raises(RequestError, match=override.partition("=")[0]):
        of_jsonl(tmp_path, tmp_path / "a.jsonl", override)
    assert of_jsonl(tmp_path, tmp_path / "a.jsonl", f"run.seed={2**63 - 1}").run.seed == 2**63 - 1


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _scramble(path):
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])


@pytest.mark.parametrize("damage", [_truncate, _scramble, lambda path: path.unlink()])
def test_damaged_documents_are_named_with_their_fix(tmp_path, damage):
    recipe, _ = _built(tmp_path, texts(40))
    layout = RunLayout.of(recipe)
    path = layout.documents / "clean-00000.parquet"
    damage(path)
    source = tmp_path / "a.jsonl"
    others = (
        (train, of_jsonl(tmp_path, source, "tokenizer.vocab_size=420")),
        (tokens.build, of_jsonl(tmp_path, source, "data.tokens.shard_tokens=1000")),
    )
    message = rf"{path}: .*; repair: mv {layout.documents} {layout.documents}.damaged && make data"
    for stage, other in others:
        with pytest.raises(RequestError, match=message) as raised:
            stage(other)
        assert "\n" not in str(raised.value)
    assert tokens.build(recipe) is None


def test_validation_documents_that_training_contains_are_left_out(tmp_path):
    """Each text occurs twice, with different punctuation and a different ending, so it is not an exact duplicate."""
    base = texts(60)
    near = [text.replace(".", "!") + " one two three" for text in base]
    recipe, published = _built(tmp_path, base + near, "data.tokens.validation_fraction=0.3")
    table = parquet.read_table(RunLayout.of(recipe).tokens / "validation.parquet").to_pydict()
    assert published.counts["dropped"] == {tokens.OVERLAP: table["kept"].count(False)}
    assert published.counts["validation"]["documents"] == table["kept"].count(True) > 0
    places = {f"jsonl:a.jsonl:{at}": n for n, at in enumerate(_offsets(recipe.data.source.path))}
    held = {places[name] for name in table["id"]}
    for name, share, kept in zip(table["id"], table["overlap"], table["kept"], strict=True):
        twin_trains = (places[name] + 60) % 120 not in held
        assert (share > 0.9) == twin_trains and kept == (not twin_trains)


def _offsets(path):
    at = 0
    with open(path, "rb") as stream:
        for line in stream:
            yield at
            at += len(line)


def test_the_overlap_rule_can_be_switched_off(tmp_path):
    base = texts(30)
    published = _built(tmp_path, base + [text + " end." for text in base], "data.tokens.max_overlap=1.0")[1]
    assert published.counts["dropped"] == {tokens.OVERLAP: 0}


def test_an_empty_validation_split_is_rejected(tmp_path):
    base = texts(1)
    corpus = [base[0] + f" End {number}." for number in range(30)]
    with pytest.raises(RequestError, match=r"shares more than data.tokens.max_overlap"):
        _built(tmp_path, corpus, "tokenizer.vocab_size=320")


def test_one_document_cannot_be_split(tmp_path):
    with pytest.raises(RequestError, match="are held out for validation"):
        _built(tmp_path, texts(1, sentences=60), "tokenizer.vocab_size=320")


def test_earlier_stages_are_needed(tmp_path, monkeypatch):
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(20)))
    monkeypatch.setattr(sys, "argv", ["pipeline", "tokenize", "--recipe", "my recipe.yaml", "run.seed=1"])
    with pytest.raises(RequestError, match=r"run `make data RECIPE=\"my recipe.yaml\" ARGS=run.seed=1` first"):
        tokens.build(recipe)
    documents.build(recipe)
    monkeypatch.setattr(sys, "argv", ["pipeline", "tokenize", "--recipe=r.yaml"])
    with pytest.raises(RequestError, match=r"run `make tokenizer RECIPE=r\.yaml` first"):
        tokens.build(recipe)


def test_another_tokenizer_moves_the_old_shards_aside(tmp_path, capsys):
    recipe, _ = _built(tmp_path, texts(40))
    other = of_jsonl(tmp_path, tmp_path / "a.jsonl", "tokenizer.vocab_size=420")
    assert documents.build(other) is None
    assert train(other) is not None and tokens.build(other) is not None
    assert "moved aside" in capsys.readouterr().out
    assert len(list((RunLayout.of(recipe).data / "previous").iterdir())) == 2


def test_tasks_write_the_same_bytes_as_one_command(built, tmp_path):
    whole, _ = built
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(300)), "data.tokens.shard_tokens=20000")
    documents.build(recipe)
    train(recipe)
    for task in (1, 0):
        assert tokens.build(recipe, TaskShard(task, 2)) is None
    assert not RunLayout.of(recipe).tokens.exists()
    tokens.build(recipe)
    assert digests(RunLayout.of(recipe).tokens) == digests(RunLayout.of(whole).tokens)


def test_several_sources_have_a_folder_each(tmp_path):
    corpus = texts(200)
    a, b = write_jsonl(tmp_path / "a.jsonl", corpus[:150]), write_jsonl(tmp_path / "b.jsonl", corpus[150:])
    sources = f"data.sources={{web: {{kind: jsonl, path: {a}}}, books: {{kind: jsonl, path: {b}}}}}"
    run_recipe = recipe(tmp_path, "data.source={}", sources)
    documents.build(run_recipe)
    train(run_recipe)
    counts = tokens.build(run_recipe).counts
    folder = RunLayout.of(run_recipe).tokens
    for name, documents_of in (("web", 150), ("books", 50)):
        of_source = counts["sources"][name]
        for side, label in (("train", "train"), ("val", "validation")):
            shards = _shards(folder / name, side)
            assert sum(map(len, shards)) == of_source[label]["documents"] > 0
            assert sum(len(shard.tokens) for shard in shards) == of_source[label]["tokens"]
        assert of_source["train"]["documents"] + of_source["validation"]["documents"] == documents_of
    assert counts["train"]["tokens"] == sum(of_source["train"]["tokens"] for of_source in counts["sources"].values())
