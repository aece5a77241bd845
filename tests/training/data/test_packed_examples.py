"""Packed chat examples: every example is complete and alone in its place, and the loss is that of unpacked ones."""

from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from configs.load import load_recipe
from tests.support.pipeline.corpora import RECIPE
from tests.support.training import families, shapes, shards
from tokenizer.special_tokens import IGNORED
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.data.packed_examples import PackedExampleData, packed_in_order, rows_by_group
from training.data.pretraining import PretrainingData
from training.data.replay import Item, Replay, samples_per_step
from training.data.windows import TokenWindows
from training.objective import Objective

PAD = 3
START = np.zeros(1, np.int64)
LENGTH = 48
BATCH = 24
SEED = 7


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Examples of very different lengths. Each has an answer at its end, and some have another one in the middle."""
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(100):
        ids = rng.integers(10, families.VOCAB, int(rng.choice([3, 5, 8, 13, 30, LENGTH]))).tolist()
        learned = rng.random(len(ids)) < 0.2
        learned[-2:] = True
        rows.append({"ids": ids, "labels": np.where(learned, ids, IGNORED).tolist()})
    folder = tmp_path_factory.mktemp("examples")
    kind = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("ids", kind), ("labels", kind)])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / "train-00000.parquet")
    return ChatExamples(folder, "train", PAD)


@pytest.fixture(scope="module")
def both(examples):
    """The same data without and with packing."""
    return ExampleData(examples, BATCH, SEED), PackedExampleData(examples, BATCH, LENGTH, SEED)


def _pieces(batches):
    """The inputs and labels of every document in these batches, without padding, sorted."""
    pieces = []
    for batch in batches:
        inputs, labels = batch.inputs.flatten().tolist(), batch.labels.flatten().tolist()
        starts = batch.starts.tolist()
        assert set(range(0, batch.inputs.numel(), batch.inputs.shape[1])) <= set(starts[:-1])
        assert starts == sorted(set(starts)) and starts[-1] == batch.inputs.numel()
        for first, last in pairwise(starts):
            if set(inputs[first:last]) == {PAD}:
                assert set(labels[first:last]) == {IGNORED}
            else:
                pieces.append((inputs[first:last], labels[first:last]))
    return sorted(pieces)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 24), (1, 6), (2, 4), (3, 8), (4, 2), (2, 1)])
def test_a_step_has_the_same_examples_with_any_ranks_and_micro_batches(examples, both, ranks, micro_batch):
    unpacked, packed = both
    for step in (0, 3, 9):
        batches = [batch for rank in range(ranks) for batch in packed.micro_batches(step, rank, ranks, micro_batch)]
        assert len(batches) == BATCH // micro_batch
        expected = []
        for batch in unpacked.micro_batches(step, 0, 1, BATCH):
            for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
                size = len(inputs) - inputs[::-1].index(next(token for token in inputs[::-1] if token != PAD))
                expected.append((inputs[:size], labels[:size]))
        assert _pieces(batches) == sorted(expected)
        assert all(batch.inputs.shape[1] <= LENGTH for batch in batches)
        again = [batch for rank in range(ranks) for batch in packed.micro_batches(step, rank, ranks, micro_batch)]
        assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(batches, again, strict=True))


def test_rows_are_few_and_hardly_padded(examples, both):
    packed_tokens = unpacked_tokens = inputs = 0
    for step in range(20):
        for batch in both[1].micro_batches(step, 0, 1, BATCH):
            packed_tokens += batch.inputs.numel()
            inputs += int((batch.inputs != PAD).sum())
        unpacked_tokens += sum(batch.inputs.numel() for batch in both[0].micro_batches(step, 0, 1, BATCH))
    assert packed_tokens < 1.1 * inputs < 0.5 * unpacked_tokens


def test_rows_never_exceed_the_length():
    rng = np.random.default_rng(2)
    for groups in (1, 2, 4, 8):
        for _ in range(50):
            lengths = rng.integers(1, 33, 8)
            items = [Item(ids := np.full(length + 1, place), ids, START) for place, length in enumerate(lengths)]
            rows = [row for group in rows_by_group(items, groups, 32) for row in group]
            assert sorted(int(item.ids[0]) for row in rows for item in row) == list(range(8))
            assert max(sum(item.inputs for item in row) for row in rows) <= 32


@pytest.mark.parametrize("count", range(4, 13))
def test_no_micro_batch_is_empty_if_every_example_fills_a_row(count):
    groups = rows_by_group([Item(np.arange(33), np.arange(33), START)] * count, 4, 32)
    assert [len(row) for group in groups for row in group] == [1] * count
    assert len(groups) == 4 and max(map(len, groups)) - min(map(len, groups)) <= 1 and all(groups)


def test_validation_has_every_example_once(examples):
    pieces = _pieces(packed_in_order(examples, 9, LENGTH))
    assert len(pieces) == len(examples)
    assert sum(label != IGNORED for _, labels in pieces for label in labels) == sum(
        batch.targets for batch in examples.in_order(9)
    )


def test_the_largest_step(both):
    steps = [both[1].micro_batches(step, 0, 1, BATCH) for step in range(9)]
    sizes = [sum(int((batch.inputs != PAD).sum()) for batch in batches) for batches in steps]
    assert both[1].tokens_per_example(9) == max(sizes) / BATCH
    assert both[1].epochs(25) == {"the examples": 6.0}


@pytest.mark.parametrize("end_of_text", [None, 9])
def test_replayed_text_is_added_to_every_step(tmp_path, examples, both, end_of_text):
    """A step has the same examples as without replay, and the same text on any number of ranks."""
    rng = np.random.default_rng(3)
    shards.write(tmp_path, "train", [[rng.integers(9, families.VOCAB, 20) for _ in range(40)]])
    windows = TokenWindows(tmp_path, "train", 16, end_of_text)
    replay = Replay(PretrainingData({"text": windows}, 3, SEED), 3, 16)
    data = PackedExampleData(examples, BATCH, LENGTH, SEED, replay)
    assert data.tokens_per_example(9) == both[1].tokens_per_example(9) + 3 * 16 / BATCH
    for step in (0, 5):
        pieces = _pieces(both[1].micro_batches(step, 0, 1, BATCH))
        text = [(item.ids[:-1].tolist(), item.labels[1:].tolist(), item.starts) for item in replay.items(step)]
        for ids, labels, starts in text:
            assert len(ids) == 16 and starts.tolist() == [
                place for place in range(16) if not place or ids[place - 1] == end_of_text
            ]
            cuts = [*starts.tolist(), 16]
            pieces += [(ids[low:high], labels[low:high]) for low, high in pairwise(cuts)]
        for ranks, micro_batch in ((1, 24), (2, 4)):
            batches = [batch for rank in range(ranks) for batch in data.micro_batches(step, rank, ranks, micro_batch)]
            assert _pieces(batches) == sorted(pieces)
    first, second = replay.items(0), replay.items(1)
    assert not any(np.array_equal(one.ids, other.ids) for one in first for other in second)


def test_the_number_of_replayed_samples():
    assert samples_per_step(0.25, 960, 128) == round(320 / 128)
    assert samples_per_step(0.01, 100, 128) == 1


MODELS = {
    "deepseek": shapes.small(max_position_embeddings=LENGTH, num_nextn_predict_layers=1),
    "gpt": families.gpt(max_position_embeddings=LENGTH),
    "gpt, rope and window": families.gpt(max_position_embeddings=LENGTH, positions="rope", window=7),
}
#: Losses that are defined by row or by token, including padding. Packing changes them.
BALANCING = dict.fromkeys(("sequence_loss", "load_balance_loss", "router_z_loss"), 0.0)


def _losses_and_gradients(section, data, masked):
    """Each loss of a step of four micro-batches, its number of targets, and the gradients."""
    train = load_recipe(RECIPE, []).train.model_copy(update={**BALANCING, "mask_documents": masked})
    objective, model = Objective(section, train), families.built(section)
    sums: dict[str, float] = dict.fromkeys(objective.weights, 0.0)
    counts: dict[str, int] = dict.fromkeys(objective.weights, 0)
    for batch in data.micro_batches(2, 0, 1, 6):
        losses = objective(model, batch)
        torch.stack([*losses.values()]).sum().backward()
        for name, count in objective.counts(batch).items():
            sums[name] += losses[name].item()
            counts[name] += count
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return {name: sums[name] / counts[name] for name in sums}, counts, gradients


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_those_of_unpacked_examples(both, name):
    section = MODELS[name]
    unpacked, packed = (
        _losses_and_gradients(section, data, masked) for data, masked in zip(both, (False, True), strict=True)
    )
    assert unpacked[1] == packed[1] and ("mtp_1" in unpacked[0]) == (name == "deepseek")
    for loss, value in unpacked[0].items():
        assert packed[0][loss] == pytest.approx(value, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in unpacked[2])
    pairs = zip(unpacked[2], packed[2], strict=True)
    assert all(float((one - other).abs().max()) < 1e-5 * largest for one, other in pairs)
