"""Generation: what may come out, when it ends, and what the model is shown."""

from typing import Any

import pytest
import torch

from configs.errors import RequestError
from tests.training.shapes import VOCAB, small
from training.inference.generate import generate
from training.inference.sampling import Sampling
from training.models.deepseek import DeepseekForCausalLM, init_weights

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 30,
    "sampling": Sampling(),
    "stop_ids": (),
    "banned_ids": (),
    "vocabulary_size": VOCAB,
    "context_length": 64,
    "seed": 0,
}


@pytest.fixture(scope="module")
def model() -> DeepseekForCausalLM:
    built = DeepseekForCausalLM(small(), VOCAB)
    init_weights(built, 0)
    return built


def new_ids(model: DeepseekForCausalLM, prompt: tuple[int, ...] = (5, 9, 11), **changes: Any) -> list[int]:
    return list(generate(model, prompt, **{**DEFAULTS, **changes}))


def test_greedy_is_the_argmax_of_the_whole_sequence(model: DeepseekForCausalLM) -> None:
    ids = [5, 9, 11]
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert new_ids(model, max_new_tokens=8, sampling=Sampling(temperature=0)) == ids[3:]


def test_same_seed_same_text_and_no_other_randomness_touched(model: DeepseekForCausalLM) -> None:
    before = torch.get_rng_state()
    first = new_ids(model)
    assert len(first) == 30 and first == new_ids(model) and first != new_ids(model, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_neither_banned_ids_nor_padding_rows_come_out(model: DeepseekForCausalLM) -> None:
    drawn = new_ids(model, max_new_tokens=200, banned_ids=range(8), vocabulary_size=40, sampling=Sampling(5.0))
    assert set(drawn) <= set(range(8, 40)) and len(set(drawn)) > 10


def test_a_stop_id_ends_it_even_when_banned(model: DeepseekForCausalLM) -> None:
    drawn = new_ids(model, max_new_tokens=500, stop_ids={2, 7}, banned_ids=range(8), sampling=Sampling(5.0))
    assert drawn[-1] in {2, 7} and len(drawn) < 500
    assert not set(drawn[:-1]) & set(range(8))


def test_only_the_latest_context_is_shown(model: DeepseekForCausalLM) -> None:
    lengths = []
    hook = model.model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    new_ids(model, tuple(range(10, 22)), max_new_tokens=3, context_length=8)
    new_ids(model, max_new_tokens=3, context_length=4)
    hook.remove()
    assert lengths == [8, 8, 8, 3, 4, 4]


@pytest.mark.parametrize(("prompt", "words"), [((), "no tokens"), ((5, VOCAB), str(VOCAB)), ((-1,), "-1")])
def test_an_impossible_prompt_is_refused_at_once(
    model: DeepseekForCausalLM, prompt: tuple[int, ...], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        generate(model, prompt, **DEFAULTS)
