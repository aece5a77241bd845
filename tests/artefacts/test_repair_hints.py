import json
import os
import subprocess
from pathlib import Path

import pytest

from artefacts import command_hints, repair_hints


def test_a_hint_is_the_command_to_type(monkeypatch):
    line = [
        "pipeline",
        "tokenize",
        "--recipe",
        "my recipes/a.yaml",
        "run.root=runs x",
        "data.sources.my-books.weight=2",
    ]
    monkeypatch.setattr("sys.argv", line)
    words = "-m pipeline dedup --recipe 'my recipes/a.yaml' 'run.root=runs x' data.sources.my-books.weight=2"
    interpreter, _, rest = command_hints.python("pipeline dedup").partition(" ")
    assert rest == words and Path(interpreter).is_file()
    hint = repair_hints.hint("tokens", Path("runs x/tokens"))
    typed = """make data RECIPE="my recipes/a.yaml" ARGS="'run.root=runs x' data.sources.my-books.weight=2\""""
    assert hint == f"repair: rm -r 'runs x/tokens' && {typed}"
    monkeypatch.setattr("sys.argv", ["pipeline", "--recipe=b.yaml", "stats"])
    assert command_hints.make("data") == "make data RECIPE=b.yaml"


def test_the_default_recipe_is_left_out(monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "export", "--recipe", "configs/demo.yaml", "launch.kind=local"])
    assert command_hints.make("pretrain") == "make pretrain"
    assert command_hints.make("finetune", None, "run.replace=true") == "make finetune ARGS=run.replace=true"
    monkeypatch.setattr("sys.argv", ["pytest", "-q"])
    assert "--recipe FILE" in command_hints.python("pipeline run")


@pytest.mark.parametrize("prompt", ["it's $5", 'say "no" to $HOME!', "plain", "two words", "`ls` \\ \\n"])
def test_hints_survive_make_and_the_shell(prompt, tmp_path, monkeypatch):
    """Paste the hint into a shell, where make prints the arguments of its command."""
    (tmp_path / "Makefile").write_text(
        "data:\n\t@python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' --recipe \"$(RECIPE)\" $(ARGS)\n"
    )
    words = ["--recipe", "my r.yaml", f"data.source.path={prompt}", "run.seed=1"]
    monkeypatch.setattr("sys.argv", ["generate", *words])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    typed = ["bash", "-c", command_hints.make("data")]
    done = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == words
