"""The small recipes of models that are trained on examples: data, training, evaluation, generation and report."""

import json
import string
from pathlib import Path
from typing import Any

import pytest

from tests.support.fork_server import run_command

pytestmark = [pytest.mark.engine, pytest.mark.apart]


class Run:
    """A run of a recipe in its own folder."""

    def __init__(self, name: str, root: Path, *overrides: str) -> None:
        self.name, self.folder = name, root / name
        self._overrides = f"run.root={root}", *overrides

    def call(self, *words: str, expect: int = 0) -> str:
        recipe = ["--recipe", f"configs/teaching/{self.name}.yaml", *self._overrides]
        done = run_command([*words[:2], *recipe, *words[2:]], expect)
        return done.stdout if expect == 0 else done.stderr

    def train(self) -> None:
        self.call("pipeline", "run")
        # A single process needs no launcher.
        self.call("training", "pretrain")

    def evaluate(self, *overrides: str) -> dict[str, Any]:
        self.call("training", "evaluate", *overrides)
        results: dict[str, Any] = json.loads((self.folder / "evaluation" / "evaluation.json").read_text())["task"]
        return results


def test_an_encoder_copies(tmp_path: Path) -> None:
    run = Run("encoder-copy", tmp_path, "train.steps=250", "data.source.documents=4000")
    run.train()
    results = run.evaluate()
    assert results["kind"] == "token_classification" and results["token_accuracy"] > 0.99 and results["exact"] > 0.9
    assert run.call("training", "generate", "generate.prompt=banana").strip() == "banana"
    run.call("training", "report")
    assert "banana" not in (page := (run.folder / "report.html").read_text()) and "complete sequences" in page
    output = run.call("training", "generate", "generate.prompt=naïve", expect=2)
    (_, line) = output.splitlines()
    assert line.startswith("error: ") and "'ï'" in line


@pytest.mark.slow
def test_an_encoder_decoder_learns_and_decodes(tmp_path: Path) -> None:
    small = "model.hidden_size=64", "model.intermediate_size=128", "data.source.documents=2000"
    short = "train.steps=30", "train.schedule.warmup_steps=5"
    run = Run("seq2seq-reverse", tmp_path, *short, *small)
    run.train()
    losses = [record["loss"] for record in map(json.loads, (run.folder / "pretrain" / "metrics.jsonl").open())
              if record["kind"] == "train"]  # fmt: skip
    assert losses[-1] < losses[0] - 0.2
    few = run.evaluate("evaluate.max_tokens=50", "evaluate.batch=2")
    assert few["kind"] == "seq2seq" and 2 < few["examples"] <= 8
    greedy = run.evaluate()
    assert greedy["examples"] > few["examples"] and {"source", "target", "output"} == set(greedy["samples"][0])
    assert greedy["samples"][0]["target"] == greedy["samples"][0]["source"][::-1]
    output = run.call("training", "generate", "generate.prompt=banana", "generate.beams=2")
    assert output.count("\n") == 1 and output.strip() and set(output.strip()) <= set(string.ascii_lowercase)
    run.call("training", "report")
    assert "complete sequences" in (run.folder / "report.html").read_text()


def test_a_classifier_predicts_a_class(tmp_path: Path) -> None:
    kinds = ("good fine nice", "yes"), ("bad poor sad", "no")
    texts = [{"text": f"{words} {n}", "label": label} for words, label in kinds for n in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    source = f"{{kind: jsonl, path: {tmp_path / 'texts.jsonl'}, target_field: label}}"
    data = f"data.source={source}", "data.clean.min_chars=0", "data.tokens.validation_fraction=0.2"
    short = "train.steps=30", "train.schedule.warmup_steps=5", "train.global_batch_tokens=1024"
    characters = "tokenizer.kind=characters", "tokenizer.vocab_size=40"
    run = Run("classifier", tmp_path, "model.classes=2", *data, *short, *characters)
    run.train()
    # The examples are sorted by class, and yet the first few are of both classes.
    few = run.evaluate("evaluate.max_tokens=8", "evaluate.batch=8")
    assert few["examples"] == 8 and few["majority"] < 1
    results = run.evaluate()
    assert results["accuracy"] == 1 and results["macro_f1"] == 1
    assert [row["name"] for row in results["classes"]] == ["no", "yes"]
    assert "yes" in run.call("training", "generate", "generate.prompt=good fine nice 77").splitlines()[0]
    run.call("training", "report")
    assert "F1" in (run.folder / "report.html").read_text()
