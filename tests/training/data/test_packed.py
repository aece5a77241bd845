"""Packed samples as the loader reads them, and the artefacts that batches are made from."""

from itertools import pairwise

import numpy as np
import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.load import load_recipe
from configs.run_layout import RunLayout
from pipeline.documents import stage as pipeline_documents
from pipeline.tokens import packing
from pipeline.tokens import stage as tokens
from tests.support.pipeline.corpora import RECIPE, of_jsonl, texts, write_jsonl
from tests.support.training.shards import END, documents, write
from tokenizer.registry import load_tokenizer
from tokenizer.special_tokens import IGNORED
from tokenizer.train import train
from training.data.build import pretraining_data
from training.data.packed import PackedSamples
from training.layers.packed_documents import Documents
from training.runs import pretrain_run

PAD = 3
LENGTH = 32
LENGTHS = np.random.default_rng(1).integers(1, 90, (2, 60)).tolist()


@pytest.fixture
def packed(tmp_path):
    """Two shards and their index; all tokens differ, except the end of documents."""
    first = [documents(lengths, 10 + 10_000 * number) for number, lengths in enumerate(LENGTHS)]
    write(tmp_path / "tokens", "train", first)
    for number in range(2):
        name = f"train-{number:05d}"
        packing.pack_shard(tmp_path / "tokens" / name, tmp_path / "packing" / name, LENGTH)
    return tmp_path, [document.tolist() for shard in first for document in shard]


def test_every_token_is_an_input_once_and_all_but_the_first_a_target_once(packed) -> None:
    folder, texts = packed
    samples = PackedSamples(folder / "tokens", folder / "packing", LENGTH, PAD)
    order = np.random.default_rng(2).permutation(len(samples))
    batches = samples.rows(order).batches(5)
    following = {text[i]: text[i + 1] for text in texts for i in range(len(text) - 1)}
    inputs, targets = [], []
    for batch in batches:
        for token, label in zip(batch.inputs.flatten().tolist(), batch.labels.flatten().tolist(), strict=True):
            if token != PAD:
                inputs.append(token)
            if label != IGNORED:
                targets.append(label)
                assert following[token] == label
    assert sorted(inputs) == sorted(token for text in texts for token in text)
    assert sorted(targets) == sorted(token for text in texts for token in text[1:])


def test_pieces_come_from_a_single_document(packed) -> None:
    folder, texts = packed
    samples = PackedSamples(folder / "tokens", folder / "packing", LENGTH, PAD)
    place = {(number, token): i for number, text in enumerate(texts) for i, token in enumerate(text)}
    owner = {token: number for number, text in enumerate(texts) for token in text if token != END}
    pieces = 0
    for batch in samples.rows(np.arange(len(samples))).batches(9):
        flat, starts = batch.inputs.flatten().tolist(), batch.starts.tolist()
        assert set(range(0, len(flat), LENGTH)) <= set(starts) and starts[-1] == len(flat)
        for first, last in pairwise(starts):
            piece = flat[first:last]
            if piece[0] == PAD:
                assert set(piece) == {PAD} and last % LENGTH == 0
                continue
            pieces += 1
            if piece[0] != END:
                text = texts[owner[piece[0]]]
                at = place[owner[piece[0]], piece[0]]
                assert text[at : at + len(piece)] == piece
                assert at == 0 if len(text) <= LENGTH else at % LENGTH == 0
        assert (Documents(batch.starts, *batch.inputs.shape).positions().flatten()[np.array(starts[:-1])] == 0).all()
    flat_lengths = np.array(LENGTHS).ravel()
    assert pieces == (-(-flat_lengths // LENGTH)).sum()


def test_a_damaged_index_is_named(packed) -> None:
    folder, _ = packed
    path = folder / "packing" / "train-00001.samples.npy"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RequestError, match=r"samples\.npy: damaged .*make data"):
        PackedSamples(folder / "tokens", folder / "packing", LENGTH, PAD)
    path.unlink()
    with pytest.raises(RequestError, match=r"samples\.npy: damaged"):
        PackedSamples(folder / "tokens", folder / "packing", LENGTH, PAD)


class Ids:
    end_of_text_id = END


def a_run(root, monkeypatch, *more, sources=()):
    """A recipe with its tokens artefact, from one source or several."""
    monkeypatch.setattr("training.data.build.load_tokenizer", lambda folder: Ids)
    many = [f"data.sources.{name}={{kind: pydocs, weight: {weight}}}" for name, weight in sources]
    small = [f"train.context_length={LENGTH}", f"finetune.max_length={LENGTH}", "train.global_batch_tokens=256"]
    clear = ["data.source={kind: pydocs}"] if many else []
    recipe = load_recipe(RECIPE, [f"run.root={root}", "data.workers=1", *clear, *many, *small, *more])
    layout = RunLayout.of(recipe)
    for number, name in enumerate([name for name, _ in sources] or ["."]):
        texts = documents(LENGTHS[0], 10 + 10_000 * number)
        write(layout.tokens / name, "train", [texts])
    layout.tokenizer.mkdir(parents=True)
    manifest.write(layout.tokenizer, Manifest("tokenizer", {}, {}, {}, {}, {}))
    counts = {"train": {}, "sources": {name: {} for name, _ in sources}} if sources else {"train": {}}
    inputs = {"tokenizer": manifest.require(layout.tokenizer, "").fingerprint}
    files = manifest.describe_files(layout.tokens)
    manifest.write(layout.tokens, Manifest("tokens", {}, inputs, {}, counts, files, {"vocab_size": 4096}))
    return recipe, layout


def test_one_source_has_no_mixture_in_its_identity(tmp_path, monkeypatch) -> None:
    recipe, layout = a_run(tmp_path, monkeypatch)
    run = pretrain_run(recipe, layout)
    assert set(run.identity) == {"seed", "model", "train"} and set(run.inputs) == {"tokens", "tokenizer"}
    assert pretraining_data(recipe, layout).micro_batches(0, 0, 1, 8)[0].starts is None
    masked = load_recipe(RECIPE, [f"run.root={tmp_path}", "train.mask_documents=true"])
    assert pretraining_data(masked, layout).micro_batches(0, 0, 1, 8)[0].starts is not None


@pytest.mark.parametrize("kind", ["windows", "best_fit"])
def test_several_sources_by_weight_packed_or_not(tmp_path, monkeypatch, kind) -> None:
    sources = (("web", 1), ("code", 3))
    recipe, layout = a_run(tmp_path, monkeypatch, f"train.packing={kind}", "train.mask_documents=true", sources=sources)
    if kind == "best_fit":
        with pytest.raises(RequestError, match="run `make data"):
            pretrain_run(recipe, layout)
        assert packing.build(recipe) is not None
    run = pretrain_run(recipe, layout)
    assert run.identity["mixture"] == {"code": 3.0, "web": 1.0}
    assert set(run.inputs) == {"tokens", "tokenizer"} | ({"packing"} if kind == "best_fit" else set())
    if kind == "best_fit":
        (index := layout.packing / "web" / "train-00000.pieces.npy").rename(tmp_path / "away")
        with pytest.raises(RequestError, match=f"rm -r {layout.packing} &&"):
            pretraining_data(recipe, layout)
        (tmp_path / "away").rename(index)
    data = pretraining_data(recipe, layout)
    batches = [batch for step in range(100) for batch in data.micro_batches(step, 0, 1, 4)]
    # The tokens of the second source start at 10,010.
    code = sum(int((batch.inputs.amax(1) >= 10_000).sum()) for batch in batches)
    assert 0.65 < code / 800 < 0.85
    assert all(batch.starts[-1] == 4 * LENGTH for batch in batches)
    other = load_recipe(RECIPE, [f"run.root={tmp_path}", "train.context_length=32", "finetune.max_length=32"])
    with pytest.raises(RequestError, match="has the sources code, web, the recipe none"):
        pretrain_run(other, layout)


def test_a_packing_for_another_length_is_refused(tmp_path, monkeypatch) -> None:
    recipe, layout = a_run(tmp_path, monkeypatch, "train.packing=best_fit")
    packing.build(recipe)
    pretrain_run(recipe, layout)
    longer = recipe.model_copy(update={"train_section": recipe.train.model_copy(update={"context_length": 64})})
    with pytest.raises(RequestError, match="different context length"):
        pretrain_run(longer, layout)


def test_a_pretrained_tokenizer_without_a_pad_token(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts(60), vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    recipe = of_jsonl(
        tmp_path,
        write_jsonl(tmp_path / "a.jsonl", texts(60)),
        "tokenizer.kind=huggingface",
        f"tokenizer.path={tmp_path / 'tokenizer.json'}",
        "model.vocab_size=500",
        "train.packing=best_fit",
        f"train.context_length={LENGTH}",
        "train.global_batch_tokens=256",
    )
    pipeline_documents.build(recipe)
    train(recipe)
    tokens.build(recipe)
    packing.build(recipe)
    layout = RunLayout.of(recipe)
    end = load_tokenizer(layout.tokenizer).end_of_text_id
    padded = 0
    for step in range(20):
        for batch in pretraining_data(recipe, layout).micro_batches(step, 0, 1, 8):
            pieces = np.split(batch.inputs.numpy().ravel(), batch.starts.numpy()[1:-1])
            labels = np.split(batch.labels.numpy().ravel(), batch.starts.numpy()[1:-1])
            for piece, label in zip(pieces, labels, strict=True):
                # The end token is the last of a piece; only padding starts with it.
                if len(piece) > 1 and piece[0] == end:
                    padded += 1
                    assert (piece == end).all() and (label == IGNORED).all()
    assert padded
