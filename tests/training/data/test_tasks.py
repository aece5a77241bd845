"""Batches of tags, text pairs and classes equal plain code, and a run reads its data from its artefacts."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from launch.preflight import preflight
from pipeline.documents import stage as documents
from pipeline.examples import supervised
from tests.support.pipeline.supervised_corpora import task_recipe
from tokenizer.registry import load_tokenizer
from tokenizer.special_tokens import IGNORED
from tokenizer.train import train
from training.data.batch import Batch
from training.data.build import held_out, pretraining_data
from training.data.build import task_examples as examples_of
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.data.tasks import LabelExamples, PairExamples, TagExamples
from training.runs import pretrain_run

_BEGIN, _END = 7, 9
_LISTS = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=9), min_size=1, max_size=12)


def _write(folder: Path, per_file: int = 5, **columns: list[object]) -> Path:
    table = pyarrow.table(
        {
            name: pyarrow.array(values, pyarrow.int32() if name == "label" else pyarrow.list_(pyarrow.int32()))
            for name, values in columns.items()
        }
    )
    for number, start in enumerate(range(0, len(table), per_file)):
        parquet.write_table(table.slice(start, per_file), folder / f"train-{number:05d}.parquet", row_group_size=2)
    return folder


def _padded(rows: list[list[int]], fill: int) -> list[list[int]]:
    max_length = max(map(len, rows))
    return [row + [fill] * (max_length - len(row)) for row in rows]


def _check(batch: Batch) -> None:
    tensors = [tensor for tensor in vars(batch).values() if tensor is not None]
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in tensors)


@settings(max_examples=80, deadline=None)
@given(_LISTS, st.data())
def test_batches_equal_those_of_plain_code(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("examples")
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
    targets = data.draw(st.lists(_LISTS.map(lambda lists: lists[0]), min_size=len(texts), max_size=len(texts)))
    tags = [[id_ + 100 for id_ in ids] for ids in texts]
    ids = [texts[i] for i in chosen]

    batch = TagExamples(_write(folder, ids=texts, targets=tags), "train").read(chosen)
    _check(batch)
    assert batch.inputs.tolist() == _padded(ids, 0) and batch.lengths.tolist() == [*map(len, ids)]
    assert batch.labels.tolist() == _padded([tags[i] for i in chosen], IGNORED)
    assert batch.targets == sum(map(len, ids)) and batch.source is None

    batch = PairExamples(_write(folder, ids=texts, targets=targets), "train", _BEGIN, _END).read(np.array(chosen))
    _check(batch)
    assert batch.source.tolist() == _padded(ids, 0) and batch.source_lengths.tolist() == [*map(len, ids)]
    assert batch.inputs.tolist() == _padded([[_BEGIN, *targets[i]] for i in chosen], 0)
    assert batch.labels.tolist() == _padded([[*targets[i], _END] for i in chosen], IGNORED)
    assert batch.lengths is None and batch.targets == sum(len(targets[i]) + 1 for i in chosen)

    batch = LabelExamples(_write(folder, ids=texts, label=[len(t) for t in texts]), "train").read(chosen)
    _check(batch)
    assert batch.inputs.tolist() == _padded(ids, 0) and batch.lengths.tolist() == [*map(len, ids)]
    assert batch.labels.tolist() == batch.lengths.tolist() and batch.targets == len(chosen)

    labels = [[IGNORED, *ids[1:]] for ids in texts]
    batch = ChatExamples(_write(folder, ids=texts, labels=labels), "train", 3).read(chosen)
    _check(batch)
    assert batch.inputs.tolist() == _padded([row[:-1] for row in ids], 3)
    assert batch.labels.tolist() == _padded([row[1:] for row in ids], IGNORED)


def _numbered(tmp_path: Path, count: int) -> LabelExamples:
    return LabelExamples(
        _write(tmp_path, ids=[[1] * (n % 5 + 1) for n in range(count)], label=[*range(count)]), "train"
    )


def test_a_global_batch_is_the_same_on_any_number_of_ranks(tmp_path):
    examples = _numbered(tmp_path, 37)
    data = ExampleData(examples, 12, 5)
    seen: list[int] = []
    for step in range(3 * 37):
        whole = data.micro_batches(step, 0, 1, 12)[0].labels.tolist()
        for ranks, micro_batch in ((2, 3), (4, 1), (1, 4)):
            parts = [data.micro_batches(step, rank, ranks, micro_batch) for rank in range(ranks)]
            assert sorted(n for part in parts for batch in part for n in batch.labels.tolist()) == sorted(whole)
            assert all(len(part) == 12 // ranks // micro_batch for part in parts)
        seen += whole
    # Every example once per epoch, in a different order every epoch.
    epochs = [seen[at : at + 37] for at in range(0, len(seen) - 36, 37)]
    assert len(epochs) == 36 and all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert data.epochs(37) == {"the examples": 12.0}


def test_examples_in_order_and_spread_evenly(tmp_path):
    examples = _numbered(tmp_path, 23)
    batches = examples.in_order(5)
    assert [n for batch in batches for n in batch.labels.tolist()] == list(range(23)) and len(batches) == 5
    labels = [n for batch in examples.spread(7, 2) for n in batch.labels.tolist()]
    assert len(labels) == 7 and labels[0] == 0 and labels[-1] == 22 and labels == sorted(labels)
    assert [n for batch in examples.spread(100, 4) for n in batch.labels.tolist()] == list(range(23))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(RequestError, match=rf"{tmp_path}: no train examples; run `make data"):
        TagExamples(tmp_path, "train")
    path = _write(tmp_path, ids=[[1]], targets=[[2]]) / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RequestError, match=rf"{path}: damaged .*; repair: rm -r {tmp_path} && .* examples"):
        TagExamples(tmp_path, "train")


@pytest.fixture(scope="module", params=["token_classification", "seq2seq"])
def run(request, tmp_path_factory):
    recipe = task_recipe(tmp_path_factory.mktemp("run"), request.param, "data.source.documents=200")
    documents.build(recipe)
    train(recipe)
    supervised.build(recipe)
    return recipe


def test_a_run_learns_from_its_examples(run):
    layout, tokenizer = RunLayout.of(run), load_tokenizer(RunLayout.of(run).tokenizer)
    data = pretraining_data(run, layout)
    (batch,) = data.micro_batches(0, 0, 1, run.train.global_batch)
    assert len(batch.inputs) == run.train.global_batch
    lengths = (batch.labels != IGNORED).sum(1).tolist()
    for row, labels, length in zip(batch.inputs, batch.labels, lengths, strict=True):
        text = tokenizer.decode(row[:length].tolist(), show_special=True)
        learned = tokenizer.decode(labels[:length].tolist(), show_special=True)
        if run.task == "token_classification":
            assert text == learned != ""
        else:
            assert text.startswith("<|begin|>") and learned == text.removeprefix("<|begin|>") + "<|endoftext|>"
    if run.task == "seq2seq":
        question, answered = batch.source[0, : batch.source_lengths[0]], batch.inputs[0, 1 : lengths[0]]
        assert question.tolist() == answered.flip(0).tolist()
    seen = {tuple(row) for part in held_out(run, layout).in_order(4) for row in part.labels.tolist()}
    assert seen and len(examples_of(run, layout, "train")) + len(seen) == 200


def test_the_identity_of_a_run_contains_its_examples(run, tmp_path):
    layout = RunLayout.of(run)
    wanted = pretrain_run(run, layout)
    examples = manifest.require(layout.examples, "data")
    assert wanted.inputs["examples"] == examples.fingerprint and "mixture" not in wanted.identity
    assert all(line.startswith("warning") for line in preflight(run, wanted, layout))
    longer = run.model_copy(update={"train_section": run.train.model_copy(update={"context_length": 64})})
    with pytest.raises(RequestError, match=r"was made for another recipe \(context_length 32 -> 64\): run `make"):
        pretrain_run(longer, layout)
    smaller = run.model_copy(update={"model_section": run.model.model_copy(update={"vocab_size": 20})})
    with pytest.raises(RequestError, match=r"has token ids up to 41, beyond the model's vocabulary of 20"):
        pretrain_run(smaller, layout)
