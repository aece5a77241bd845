"""Scores of continuations equal a plain computation, however contexts are shared, batched and truncated."""

from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from tests.support.training.families import CASES, VOCAB, built, cases
from training.inference.score import score

CONTEXT = 16


def plain(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = [*context, *continuation][-(CONTEXT + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0, -len(continuation) :].double()
    targets = torch.tensor(continuation)
    log_probability = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(log_probability), bool((logits.argmax(-1) == targets).all())


def requests(model: Any) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=generator).tolist()

    shared = [ids(length) for length in (9, 10, 12)]
    pairs = [(context, ids(length)) for context in shared for length in (1, 3, 4, 1)]
    pairs += [(ids(length), ids(3)) for length in (1, 2, 14, 20)]  # alone; the last ones are truncated
    pairs += [pairs[1], (shared[0][:2], ids(2)), (shared[0][:2], ids(CONTEXT))]
    best = int(model(torch.tensor([shared[0]]))[0, -1].argmax())
    return [*pairs, (shared[0], [best])]


@pytest.mark.parametrize("case", [name for name in cases("deepseek", "gpt", "bigram") if "no positions" not in name])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_scores_equal_a_plain_computation(case: str, batch_tokens: int) -> None:
    model = built(CASES[case])
    pairs, done = requests(model), []
    scores = score(model, pairs, CONTEXT, batch_tokens, done.append)
    expected = [plain(model, *pair) for pair in pairs]
    assert [one.log_probability for one in scores] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [one.greedy for one in scores] == [greedy for _, greedy in expected]
    assert scores[-1].greedy and not all(one.greedy for one in scores)
    assert sum(done) == len(pairs)


def test_a_shared_context_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(CASES["deepseek"])
    read = 0

    def counted(ids: torch.Tensor, *rest: Any, hidden: Any = model.hidden, **options: Any) -> Any:
        nonlocal read
        read += ids.numel()
        return hidden(ids, *rest, **options)

    monkeypatch.setattr(model, "hidden", counted)
    context = [5] * 12
    score(model, [(context, [token, 7, 9]) for token in range(4)], CONTEXT, 1000)
    assert read == 12 + 4 * 2
    read = 0
    score(model, [(context, [token]) for token in range(4)], CONTEXT, 1000)
    assert read == 12


def test_a_continuation_must_fit() -> None:
    with pytest.raises(RequestError, match="a continuation of 17 tokens does not fit into the model's context of 16"):
        score(built(CASES["bigram"]), [([1], [2] * 17)], CONTEXT, 1000)
