"""Names that are not UTF-8 are refused early, and text that cannot be printed ends no command."""

import io
import os
import sys

import pytest

from artefacts.errors import RequestError, spelled
from configs import command
from configs.load import load_recipe
from pipeline.__main__ import main
from tests.support.pipeline.corpora import RECIPE, texts, write_jsonl

ODD = os.fsdecode(b"caf\xe9")
MESSAGE = r"caf\xe9 is not UTF-8: if it is a path, rename that file or folder, or give a link to it with another name"


def test_only_invalid_characters_are_escaped():
    assert spelled("café \u2028 \U0001f600") == "café \u2028 \U0001f600"
    assert spelled(ODD) == r"caf\xe9" and spelled("a\ud800") == r"a\ud800"


@pytest.mark.parametrize(
    "key",
    [
        "data.source.path",
        "data.root",
        "run.root",
        "tokenizer.path",
        "finetune.examples.path",
        "generate.weights",
        "generate.prompt",
        "launch.hostfile",
        "data.clean.decontaminate.path",
        "train.deepspeed.path",
    ],
)
def test_an_invalid_name_in_every_key(key):
    with pytest.raises(RequestError) as fault:
        load_recipe(RECIPE, [f"{key}={ODD}"])
    assert str(fault.value) == f"{RECIPE}: {key}: {MESSAGE}"


def test_an_invalid_name_in_a_recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text('run: {name: a}\ndata: {source: {kind: pydocs, packages: [json, "caf\\udce9"]}}\n')
    with pytest.raises(RequestError) as fault:
        load_recipe(path)
    assert str(fault.value) == f"{path}: data.source.packages: {MESSAGE}"


def _outcome(arguments, monkeypatch, encoding):
    """Run a command with streams of an encoding, and return its exit status, output and errors."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors=errors) for errors in ("strict", "backslashreplace"))
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as left:
        command.run(main)
    for stream in (out, err):
        stream.flush()
    return left.value.code, out.buffer.getvalue(), err.buffer.getvalue()


@pytest.mark.parametrize("words", [[f"run.root={ODD}"], ["--recipe", f"{ODD}.yaml"], ["--reason", ODD]])
def test_every_argument_of_a_command(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = _outcome(["rejected", "--recipe", str(RECIPE), *words], monkeypatch, "ascii")
    assert status == 2 and not out and err.startswith(b"error: ") and err.count(b"\n") == 1
    assert MESSAGE.removeprefix(r"caf\xe9").encode() in err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_below_a_folder_are_read_and_printed(tmp_path, monkeypatch, encoding):
    folder = tmp_path / "süß"
    folder.mkdir()
    for number, name in enumerate([f"{ODD}.jsonl", "ü.jsonl"]):
        write_jsonl(folder / name, [f"{name} {text}".encode("utf-8", "replace").decode() for text in texts(5, number)])
    (folder / f"{ODD}.jsonl").write_text((folder / f"{ODD}.jsonl").read_text() + "{broken\n")
    overrides = [f"run.root={folder}", "data.source={}", "data.workers=1", "data.max_bad_fraction=1"]
    overrides += ["data.source.kind=jsonl", f"data.source.path={folder}"]
    status, out, err = _outcome(["clean", "--recipe", str(RECIPE), *overrides], monkeypatch, encoding)
    assert status == 0, err
    assert "s\\xfc\\xdf" in out.decode() if encoding == "ascii" else "süß" in out.decode()
    assert rb"caf\xe9.jsonl at byte" in out
