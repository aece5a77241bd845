"""The contract of the models of all families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.schema.models.bigram import BigramSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from tests.support.training.families import (
    CASES,
    CLASSES,
    LENGTH,
    VOCAB,
    MicroBatch,
    built,
    cases,
    encoder_decoder,
    micro_batch,
)
from tests.support.training.one_step import moved_by_a_step
from tests.support.training.workers import fork_workers
from training.estimate import flops_per_token, parameters
from training.export.weights import load_weights
from training.layers.cpu import attention as cpu_attention
from training.models.registry import build_model, init_weights

every = pytest.mark.parametrize("name", CASES)
CAUSAL = cases("deepseek", "gpt", "bigram", "encoder_decoder")
DECODERS = pytest.mark.parametrize("name", CAUSAL)


@every
def test_logits_and_loss_have_their_shapes(name: str) -> None:
    section, batch = CASES[name], micro_batch(CASES[name])
    model = built(section)
    logits = batch.logits(model)
    assert logits.shape == ((3, CLASSES) if section.task == "sequence_classification" else (3, LENGTH, VOCAB))
    rows = torch.nn.functional.log_softmax(logits.double(), -1).flatten(0, -2)
    kept = batch.labels.flatten() >= 0
    expected = -rows[kept].gather(1, batch.labels.flatten()[kept, None]).sum()
    torch.testing.assert_close(batch.loss(model).double(), expected, rtol=1e-5, atol=1e-4)


@every
def test_gradients_reach_every_parameter(name: str) -> None:
    model = built(CASES[name]).train()
    micro_batch(CASES[name], samples=5).loss(model).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", [*CAUSAL, *cases("encoder")])
def test_which_positions_see_the_future(name: str) -> None:
    """Through two windows of five the first position reaches the last: 0, 4, 8."""
    section, batch = CASES[name], micro_batch(CASES[name]).row(0)
    model = built(section)
    before = batch.logits(model)
    batch.ids[:, -1] = (batch.ids[:, -1] + 1) % VOCAB
    changed = (batch.logits(model) - before).abs().amax(-1)[0] > 1e-6
    assert changed[-1]
    assert not changed[:-1].any() if name in CAUSAL else changed.all()


@pytest.mark.parametrize("name", cases("encoder", "encoder_decoder", "classifier"))
def test_padding_changes_nothing(name: str) -> None:
    """Neither other ids in the padding nor removing it changes the result."""
    section, batch = CASES[name], micro_batch(CASES[name])
    model = built(section)
    ids, lengths = (batch.more.get(key, batch.ids) for key in ("source", "source_lengths"))
    lengths = batch.more.get("lengths", lengths)
    behind = torch.arange(LENGTH) >= lengths[:, None]
    seen = ~behind if section.task == "token_classification" else ...
    before = batch.logits(model)[seen]
    ids[behind] = (ids[behind] + 7) % VOCAB
    after = batch.logits(model)
    assert torch.equal(before, after[seen])
    for number, length in enumerate(lengths.tolist()):
        one = batch.row(number)
        cut = {"source": one.more["source"][:, :length]} if "source" in one.more else {}
        alone = MicroBatch(one.ids if cut else one.ids[:, :length], one.labels, cut).logits(model)[0]
        expected = after[number, :length] if section.task == "token_classification" else after[number]
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@DECODERS
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [4, 1, 3, 1], [LENGTH]])
def test_a_cache_equals_reading_the_complete_sequence(name: str, pieces: list[int]) -> None:
    section, batch = CASES[name], micro_batch(CASES[name])
    model = built(section)
    more = [model.encode(**batch.more)] if section.task == "seq2seq" else []
    whole = model.hidden(batch.ids, *more)
    cache = model.new_cache(3, LENGTH)
    read = 0
    for piece in pieces:
        states = model.hidden(batch.ids[:, read : read + piece], *more, cache=cache)
        torch.testing.assert_close(states, whole[:, read : read + piece], atol=2e-5, rtol=1e-4)
        read += piece
        cache.commit([read] * 3)
    with pytest.raises(ValueError, match="do not fit"):
        model.hidden(batch.ids[:, :1], *more, cache=cache)


@torch.no_grad()
@DECODERS
def test_sequences_of_unequal_lengths_share_a_cache(name: str) -> None:
    section, batch = CASES[name], micro_batch(CASES[name])
    model = built(section)
    more = [model.encode(**batch.more)] if section.task == "seq2seq" else []
    whole = model.hidden(batch.ids, *more)
    cache, lengths = model.new_cache(3, LENGTH), [2, 5, 6]
    model.hidden(batch.ids[:, :6], *more, cache=cache)
    for incoming in (1, 2):
        cache.commit(lengths)
        ids = torch.stack([batch.ids[row, at : at + incoming] for row, at in enumerate(lengths)])
        states = model.hidden(ids, *more, cache=cache)
        expected = torch.stack([whole[row, at : at + incoming] for row, at in enumerate(lengths)])
        torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
        lengths = [at + incoming for at in lengths]


@every
def test_weights_round_trip(name: str) -> None:
    section, batch = CASES[name], micro_batch(CASES[name])
    first, second, third = built(section, 1), built(section, 2), built(section, 3)
    expected = batch.logits(first)
    assert not torch.equal(batch.logits(second), expected)
    second.load_state_dict(first.state_dict())
    assert torch.equal(batch.logits(second), expected)
    load_weights(third, [*first.named_parameters(), *first.named_buffers()])
    assert torch.equal(batch.logits(third), expected)


@every
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_checkpointing_changes_nothing(name: str, mode: Any) -> None:
    section = CASES[name]
    if hasattr(section, "dropout"):
        section = section.model_copy(update={"dropout": 0.2})
    batch, seen = micro_batch(section), []
    for setting in ("none", mode):
        model = built(section).train()
        model.set_activation_checkpointing(setting)
        torch.manual_seed(5)
        loss = batch.loss(model)
        loss.backward()
        seen.append({"loss": loss.detach(), **{key: p.grad for key, p in model.named_parameters()}})
    different = [key for key in seen[0] if not torch.equal(seen[0][key], seen[1][key])]
    assert not different


@torch.no_grad()
@every
def test_bf16_is_close(name: str) -> None:
    batch, model = micro_batch(CASES[name]), built(CASES[name])
    expected = batch.logits(model)
    logits = batch.logits(model.to(torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    tags = CASES[name].task == "token_classification"
    valid = torch.arange(LENGTH) < batch.more["lengths"][:, None] if tags else ...
    assert (logits.float() - expected)[valid].norm() < 0.03 * expected[valid].norm()


@torch.no_grad()
@every
def test_a_sample_is_the_same_alone(name: str) -> None:
    batch, model = micro_batch(CASES[name]), built(CASES[name])
    together = batch.logits(model)
    for number in range(3):
        torch.testing.assert_close(batch.row(number).logits(model)[0], together[number], atol=1e-5, rtol=1e-5)


@every
def test_closed_form_equals_the_built_model(name: str) -> None:
    model = build_model(CASES[name], VOCAB)
    counts = parameters(CASES[name], VOCAB)
    named = dict(model.named_parameters())
    assert counts.all == sum(p.numel() for p in named.values())
    tables = ("embed_tokens.weight", "positions.weight", "lm_head.weight", "score.weight")
    assert counts.tables == sum(p.numel() for key, p in named.items() if key.endswith(tables))


@every
def test_flops_equal_those_of_the_built_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With blocks of one query, blocked attention skips exactly the scores that are masked.
    monkeypatch.setattr(cpu_attention, "QUERY_BLOCK", 1)
    section = CASES[name]
    batch = micro_batch(section, samples=2, length=12)
    more = {"source": batch.more["source"]} if "source" in batch.more else {}
    model = built(section).train()
    with FlopCounterMode(display=False) as counter:
        model(batch.ids, **more).mean().backward()
    expected = flops_per_token(section, VOCAB, 12) * batch.ids.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@every
def test_initial_values_depend_on_seed_and_name(name: str) -> None:
    section = CASES[name]
    one, same, other = (built(section, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key, value in one.items() if value.dim() > 1]
    assert drawn and not any(torch.equal(one[key], other[key]) for key in drawn)
    tied = {frozenset(keys) for keys in _shared(build_model(section, VOCAB))}
    for key in drawn:
        for second in drawn:
            alike = key != second and one[key].shape == one[second].shape and torch.equal(one[key], one[second])
            assert not alike or any({key, second} <= group for group in tied), f"{key} is {second}"
    with torch.no_grad():
        half = build_model(section, VOCAB).to(torch.bfloat16)
        init_weights(half, 1)
    assert all(torch.equal(value, one[key].to(value.dtype)) for key, value in half.state_dict().items())


@pytest.mark.engine
def test_every_stage_of_zero_takes_the_same_step(tmp_path: Path) -> None:
    """Stage 3 has a weight only while its module is called; learned positions and tied tables are where that fails."""
    fork_workers(_check_stages, 1, tmp_path, tmp_path / "log")


def _check_stages(_folder: Path) -> None:
    for name in ("gpt", "encoder, learned, swiglu", "pairs, learned, pre-norm", "pairs, window, tied and shared"):
        first, *others = (moved_by_a_step(CASES[name], stage) for stage in (0, 1, 3))
        assert all(step.any() for step in first.values())
        for other in others:
            assert other.keys() == first.keys()
            assert all(torch.allclose(other[key], step, rtol=1e-4, atol=1e-6) for key, step in first.items()), name


def _shared(model: torch.nn.Module) -> list[list[str]]:
    """Names of parameters that are the same tensor."""
    groups: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(key)
    return list(groups.values())


def test_xavier_treats_queries_keys_and_values_as_three_matrices() -> None:
    named = dict(built(encoder_decoder()).named_parameters())
    for key in ("encoder.layers.0.self_attn.qkv_proj.weight", "decoder.layers.0.cross_attn.kv_proj.weight"):
        largest, bound = named[key].abs().max(), (6 / 64) ** 0.5
        assert 0.99 * bound < largest <= bound, key
    assert named["encoder.layers.0.mlp.up_proj.weight"].abs().max() <= (6 / (32 + 48)) ** 0.5
    assert float(named["decoder.embed_tokens.weight"].detach().std()) == pytest.approx(32**-0.5, rel=0.1)


def test_sizes_equal_the_paper() -> None:
    """Width 512, six plus six layers, 50,000 ids. Counts include feed-forward layers, which some omit."""
    paper = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
    untied = parameters(EncoderDecoderSection(**paper), 50_000)
    tied = parameters(EncoderDecoderSection(**paper, tie_word_embeddings=True), 50_000)
    assert (untied.total, tied.total) == (120_938_496, 95_338_496)
    with torch.device("meta"):
        model = build_model(EncoderDecoderSection(**paper), 50_000)
    assert untied.total == sum(p.numel() for p in model.parameters())
    feed = sum(p.numel() for key, p in model.named_parameters() if ".mlp." in key)
    assert untied.total - feed == 95_741_952


def test_the_loss_of_the_bigram_model_equals_that_of_its_table() -> None:
    model, batch = built(BigramSection()), micro_batch(BigramSection())
    table = model.model.embed_tokens.weight
    assert torch.equal(batch.logits(model), table[batch.ids])
