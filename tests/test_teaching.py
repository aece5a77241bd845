"""The teaching recipe, by its commands: learns its walks through the alphabet and goes on with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artefacts.metrics import read_metrics

pytestmark = pytest.mark.engine
CHECKOUT = Path(__file__).parents[1]
RECIPE = "configs/deepseek-teaching.yaml"


def call(*words: str, root: Path, expect: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions"))
    command = [sys.executable, "-m", *words, f"run.root={root}", "train.steps=300", "train.eval_every=100"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_it_learns_and_generates_the_continuation(tmp_path: Path) -> None:
    call("pipeline", "run", "--recipe", RECIPE, root=tmp_path)
    call("launch", "recipe", "pretrain", "--recipe", RECIPE, root=tmp_path)
    folder = tmp_path / "deepseek-teaching" / "pretrain"
    assert read_metrics(folder / "metrics.jsonl")["validation"][-1]["loss"] < 0.1
    details = json.loads((folder / "manifest.json").read_text())["details"]
    assert details["parameters"]["total"] > 0
    for prompt, expected in (("acegik", "moqsuwyACEGI"), ("XYZ0", "12345678")):
        said = call("training", "generate", "--recipe", RECIPE, f"generate.prompt={prompt}", root=tmp_path)
        assert said.startswith(prompt + expected) and "ended" not in said
    # The last character is drawn from the whole context and not read.
    said = call("training", "generate", "--recipe", RECIPE, "generate.max_new_tokens=300", root=tmp_path)
    line, *_, told = said.splitlines()
    assert len(line) == 129
    assert told == "ended where the context does: model.max_position_embeddings is 128"
    for wrong, words in (
        ("generate.prompt=ac?é", "the tokenizer has never seen '?', 'é'"),
        ("generate.speculative=true", "model.num_nextn_predict_layers is 0"),
        ("generate.prompt=" + "ac" * 70, "140 tokens, beyond model.max_position_embeddings (128)"),
    ):
        said = call("training", "generate", "--recipe", RECIPE, wrong, root=tmp_path, expect=2)
        assert said.startswith("error: ") and words in said and said.count("\n") == 1
