"""Generation traces equal the softmax of a complete forward pass, and temperatures are compared."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from tests.support.training.shapes import VOCAB, small
from tests.support.training.tiny_run import GPT, as_trained, tiny_model, tiny_recipe
from training.__main__ import main
from training.commands import generate as generate_command
from training.commands import temperature
from training.inference.completion import complete
from training.inference.generate import Limits, generate
from training.inference.sampling import Sampling
from training.inference.trace import Step, step_of, traced
from training.models.deepseek import DeepseekForCausalLM, init_weights

LIMITS = Limits(max_new_tokens=12, context_length=64, vocabulary_size=VOCAB, banned_ids=range(8))
PROMPT = [15, 9, 11]


@pytest.fixture(scope="module")
def model() -> DeepseekForCausalLM:
    model = DeepseekForCausalLM(small(), VOCAB)
    init_weights(model, 0)
    return model.eval()


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.5, top_k=4), Sampling(1.0, top_p=0.6), Sampling(0)])
def test_a_trace_is_the_softmax_of_the_complete_sequence(model: Any, sampling: Sampling) -> None:
    steps: list[Step] = []
    new = list(traced(model, PROMPT, LIMITS, sampling, seed=3, on_step=steps.append))
    assert new == list(generate(model, PROMPT, LIMITS, sampling, seed=3)) == [step.token for step in steps]
    with torch.no_grad():
        logits_TV = model(torch.tensor([PROMPT + new]))[0, len(PROMPT) - 1 : -1].double()
    logits_TV[:, :8] = float("-inf")
    for step, logits_V in zip(steps, logits_TV, strict=True):
        chances = (logits_V / (sampling.temperature or 1.0)).softmax(-1)
        order = chances.argsort(descending=True).tolist()
        kept = order[: sampling.top_k] if sampling.top_k else order
        if sampling.top_p < 1:
            kept = kept[: 1 + int((chances[order].cumsum(-1) < sampling.top_p).sum())]
        total = sum(float(chances[token]) for token in kept)
        after = {token: float(chances[token]) / total for token in kept}
        assert step.probability == pytest.approx(after[step.token], rel=1e-4)
        assert step.rank == 1 + kept.index(step.token)
        others = [token for token in kept if token != step.token and after[token] > 0][:5]
        assert [token for token, _ in step.alternatives] == others
        assert [chance for _, chance in step.alternatives] == pytest.approx([after[t] for t in others], rel=1e-4)
        entropy = -sum(p * math.log(p) for p in after.values() if p > 0)
        assert step.entropy == pytest.approx(entropy, rel=1e-3, abs=1e-6)
        assert step.log_probability == pytest.approx(float(logits_V.log_softmax(-1)[step.token]), rel=1e-4)


def test_even_chances_share_the_first_rank() -> None:
    step = step_of(torch.zeros(4), 2, Sampling(1.0))
    assert (step.rank, step.probability, step.entropy) == (1, 0.25, pytest.approx(math.log(4)))
    assert sorted(token for token, _ in step.alternatives) == [0, 1, 3]


def test_generate_prints_the_trace_after_the_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, GPT)
    as_trained(monkeypatch, generate_command, tiny_model(recipe))
    words = ["generate", "--recipe", str(tmp_path / "recipe.yaml"), "generate.prompt=The ", "generate.max_new_tokens=5"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--trace"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(plain) and plain.startswith("The ")
    rows = out[len(plain) :].splitlines()[2:]
    escaped = plain[4:-1].replace("\n", "\\n").replace(" ", "␣")
    assert "".join(row.split()[1] for row in rows) == escaped and len(rows) == 5


def test_several_completions_depend_only_on_their_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trained(monkeypatch, generate_command, tiny_model(tiny_recipe(tmp_path, GPT)))
    words = ["generate", "--recipe", str(tmp_path / "recipe.yaml"), "generate.prompt=The ", "generate.max_new_tokens=5"]
    alone = []
    for seed in (4, 5, 6):
        assert main([*words, f"generate.seed={seed}"]) == 0
        alone.append(capsys.readouterr().out)
    assert len(set(alone)) == 3
    assert main([*words, "generate.seed=4", "generate.samples=3"]) == 0
    assert capsys.readouterr().out == "---\n".join(alone)
    for more, message in (
        ("generate.temperature=0", "needs temperature above 0"),
        ("--trace", "remove generate.samples"),
    ):
        with pytest.raises(RequestError, match=message):
            main([*words, "generate.samples=3", more])


def test_a_trace_of_drafts_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, GPT, "generate.speculative=true", "generate.temperature=0", "generate.prompt=a")
    with pytest.raises(RequestError, match=r"remove generate\.speculative"):
        generate_command.generate(recipe, trace=True)


def test_temperatures_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, GPT, "generate.prompt=The ")
    model = tiny_model(recipe)
    as_trained(monkeypatch, temperature, model)
    assert temperature.evaluate_temperature(recipe) == 0
    rows = json.loads((tmp_path / "tiny" / "temperatures.json").read_text())["temperatures"]
    assert [row["temperature"] for row in rows] == [0.1, 0.5, 1.0, 1.5, 2.0]
    out = capsys.readouterr().out
    for row in rows:
        as_generated = tiny_recipe(tmp_path, GPT, "generate.prompt=The ", f"generate.temperature={row['temperature']}")
        tokenizer = generate_command.load_tokenizer(tmp_path / "tiny" / "tokenizer")
        assert row["completion"] == "".join(complete(as_generated, model, tokenizer))
        assert repr(row["completion"]) in out
        ids = tokenizer.encode(row["completion"])
        assert row["distinct"] == pytest.approx(len(set(ids)) / len(ids))
    entropies, likely = [row["entropy"] for row in rows], [row["log_probability"] for row in rows]
    assert entropies == sorted(entropies) and likely == sorted(likely, reverse=True)


def test_only_language_models_continue_a_prompt(tmp_path: Path) -> None:
    encoder = {key: value for key, value in GPT.items() if key != "initializer_range"} | {"family": "encoder"}
    with pytest.raises(RequestError, match="family=encoder does not complete prompts"):
        source = "data.source={kind: sequences}"
        temperature.evaluate_temperature(tiny_recipe(tmp_path, encoder, "generate.prompt=a", source))
