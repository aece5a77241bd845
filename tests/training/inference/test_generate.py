"""Generation: the cache equals the complete context, only allowed tokens occur, and drafts change nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from configs.schema.models.deepseek import DeepseekSection
from tests.support.training.shapes import SHAPES, VOCAB, small
from training.inference.generate import Limits, generate, generate_batch
from training.inference.sampling import Sampling
from training.inference.speculative import Speculation, _Drafter
from training.layers.kv_cache import Cache
from training.models.deepseek import DeepseekForCausalLM, init_weights

LIMITS = Limits(max_new_tokens=30, context_length=64, vocabulary_size=VOCAB)
GREEDY = Sampling(temperature=0)
PROMPT = (5, 9, 11)


def built(config: DeepseekSection) -> DeepseekForCausalLM:
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, 0)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DeepseekForCausalLM:
    return built(small())


@pytest.fixture(scope="module")
def walker() -> DeepseekForCausalLM:
    """A model with two prediction layers that has mostly learned to count: some drafts are right, some wrong."""
    config = small(num_nextn_predict_layers=2, q_lora_rank=24)
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        start = torch.randint(0, VOCAB, (16, 1), generator=generator)
        step = torch.randint(1, 3, (16, 1), generator=generator)
        ids = (start + step * torch.arange(28)) % VOCAB
        targets = [ids[:, 1 + depth : 25 + depth] for depth in range(3)]
        loss = sum(value for value in model(ids[:, :24], targets).values()) / targets[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def new_ids(model: Any, seed: int = 0, sampling: Sampling | None = None, **changes: Any) -> list[int]:
    return list(generate(model, PROMPT, replace(LIMITS, **changes), sampling or Sampling(), seed=seed))


def without_cache(model: DeepseekForCausalLM, ids: list[int], count: int) -> list[int]:
    prompt = len(ids)
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids[prompt:]


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_is_the_argmax_of_the_complete_sequence(name: str) -> None:
    model = built(SHAPES[name])
    assert new_ids(model, sampling=GREEDY, max_new_tokens=12) == without_cache(model, list(PROMPT), 12)


@pytest.mark.parametrize("name", SHAPES)
def test_absorbed_attention_equals_the_expanded(name: str) -> None:
    """Hidden states of tokens read from the cache, one or several at a time, equal the complete sequence's."""
    model = built(SHAPES[name])
    ids = torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(2))
    expected = model.hidden(ids)
    for pieces in ([20], [7, 13], [1] * 20, [5, 1, 1, 13]):
        cache, states = model.new_cache(3, 20), []
        for piece in ids.split(pieces, dim=1):
            states.append(model.hidden(piece, cache=cache))
            cache.commit([length + piece.shape[1] for length in cache.lengths])
        torch.testing.assert_close(torch.cat(states, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_the_cache_holds_latent_and_rotated_key_and_nothing_else(model: DeepseekForCausalLM) -> None:
    config = small()
    cache = model.new_cache(sequences=3, capacity=50)
    numbers = config.num_hidden_layers * 3 * 50 * (config.kv_lora_rank + config.qk_rope_head_dim)
    assert cache.nbytes == 4 * numbers
    model.hidden(torch.zeros(3, 40, dtype=torch.int64), cache=cache)
    tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == numbers


@pytest.mark.parametrize("context", [64, 12])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), Sampling(0.7, top_k=20, top_p=0.9)])
def test_a_batch_of_unequal_prompts_equals_single_prompts(
    model: DeepseekForCausalLM, sampling: Sampling, context: int
) -> None:
    prompts = [(5, 9, 11), (7,), (8, 8, 8, 8, 1, 2, 3, 4, 5), (50, 60)]
    limits = replace(LIMITS, stop_ids={13, 14, 15}, context_length=context)
    together = generate_batch(model, prompts, limits, sampling, seed=3)
    alone = [list(generate(model, prompt, limits, sampling, seed=3 + row)) for row, prompt in enumerate(prompts)]
    assert together == alone


@pytest.mark.parametrize("context", [64, 17, 4])
@pytest.mark.parametrize("prompt", [(3, 4, 5), (40,), (10, 12, 14, 16), (1, 90, 7, 3)])
def test_drafting_changes_nothing(walker: DeepseekForCausalLM, prompt: tuple[int, ...], context: int) -> None:
    limits = replace(LIMITS, context_length=context, max_new_tokens=40, stop_ids={99}, banned_ids={50, 60})
    drafting = Speculation(walker, limits)
    assert list(drafting.generate(prompt)) == list(generate(walker, prompt, limits, GREEDY, seed=0))


def test_drafts_equal_the_multi_token_predictions(walker: DeepseekForCausalLM) -> None:
    """Accepted and refused drafts both occur, and each is the argmax of its depth over the complete text."""
    limits = replace(LIMITS, max_new_tokens=48)
    drafting = Speculation(walker, limits)
    seen: list[tuple[list[int], list[int]]] = []
    original = _Drafter.draft

    def spied(self: Any, ids: list[int], hidden: torch.Tensor, best: Any) -> list[int]:
        drafts = original(self, ids, hidden, best)
        seen.append((list(ids), drafts))
        return drafts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Drafter, "draft", spied)
        list(drafting.generate((3, 5)))
        list(drafting.generate((70, 20, 21)))
    assert 0.2 < drafting.accepted / drafting.drafted < 0.98
    for ids, drafts in seen:
        hidden = walker.hidden(torch.tensor([ids[:-1]]))
        rope = walker.model.rotary_table(torch.arange(len(ids) - 1))
        known = list(ids)
        for depth, layer in enumerate(walker.prediction_layers, start=1):
            ahead = walker.model.embed_tokens(torch.tensor([known[depth:]]))
            hidden = layer.predict(hidden, ahead, rope)
            guess = int(walker.lm_head(hidden[0, -1]).argmax())
            assert drafts[depth - 1] == guess
            known.append(guess)


def test_drafting_needs_prediction_layers(model: DeepseekForCausalLM) -> None:
    with pytest.raises(RequestError, match="num_nextn_predict_layers is 0"):
        Speculation(model, LIMITS)


def test_same_seed_same_text_and_no_other_randomness_touched(model: DeepseekForCausalLM) -> None:
    before = torch.get_rng_state()
    first = new_ids(model)
    assert len(first) == 30 and first == new_ids(model) and first != new_ids(model, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_neither_banned_ids_nor_padding_rows_are_generated(model: DeepseekForCausalLM) -> None:
    drawn = new_ids(
        model, max_new_tokens=200, context_length=300, banned_ids=range(8), vocabulary_size=40, sampling=Sampling(5.0)
    )
    assert len(drawn) == 200 and set(drawn) <= set(range(8, 40)) and len(set(drawn)) > 10


def test_a_stop_id_ends_generation_even_when_banned(model: DeepseekForCausalLM) -> None:
    changes = {"stop_ids": {2, 7}, "banned_ids": range(8), "max_new_tokens": 500, "context_length": 600}
    drawn = new_ids(model, sampling=Sampling(5.0), **changes)
    assert drawn[-1] in {2, 7} and len(drawn) < 500
    assert not set(drawn[:-1]) & set(range(8))


def test_generation_ends_when_the_context_is_full(model: DeepseekForCausalLM) -> None:
    assert len(new_ids(model, context_length=8, max_new_tokens=30)) == 8 - 3 + 1
    assert len(new_ids(model, context_length=3, max_new_tokens=30)) == 1
    assert len(new_ids(model, context_length=8, max_new_tokens=2)) == 2


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "generate.prompt has no tokens"),
        ((5, VOCAB), f"{VOCAB} is not in the vocabulary"),
        ((-1,), "-1 is not in the vocabulary"),
        ((1,) * 65, r"65 tokens, beyond model.max_position_embeddings \(64\)"),
    ],
)
def test_an_impossible_prompt_is_refused_immediately(
    model: DeepseekForCausalLM, walker: DeepseekForCausalLM, prompt: tuple[int, ...], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        generate(model, prompt, LIMITS, GREEDY, seed=0)
    with pytest.raises(RequestError, match=words):
        generate_batch(model, [PROMPT, prompt], LIMITS, GREEDY, seed=0)
    with pytest.raises(RequestError, match=words):
        Speculation(walker, LIMITS).generate(prompt)


def test_a_too_small_cache_is_reported(model: DeepseekForCausalLM) -> None:
    cache = model.new_cache(1, 4)
    assert isinstance(cache, Cache)
    with pytest.raises(ValueError, match="room for 4 tokens per sequence: it holds 0, and 5 more do not fit"):
        model.hidden(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
