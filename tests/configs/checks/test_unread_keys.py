"""Overrides that a command does not read are refused, unless they agree with the run."""

import pytest

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.checks import unread_keys
from configs.checks.command_keys import READS, target_reads
from configs.identities import documents_identity
from configs.load import dump_recipe, load_recipe
from configs.run_layout import RunLayout

RECIPE = "configs/demo.yaml"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Return ``unread_keys.check`` for a run whose documents and weights were built with a few overrides."""
    monkeypatch.delenv(unread_keys.TARGETS, raising=False)
    root = f"run.root={tmp_path}"
    source = ["data.source.kind=text", "data.source.path=here.txt", "data.source.packages=null"]
    trained_with = load_recipe(
        RECIPE, [root, *source, "train.steps=77", "train.save_every=5", "data.clean.min_chars=9"]
    )
    layout = RunLayout.of(trained_with)
    layout.documents.mkdir(parents=True)
    details = {"paths": {"data.source.path": "here.txt"}}
    manifest.write(layout.documents, Manifest("documents", documents_identity(trained_with), {}, {}, {}, {}, details))
    layout.pretrain.mkdir()
    (layout.pretrain / "recipe.yaml").write_text(dump_recipe(trained_with))

    def checked(command: str, *overrides: str) -> None:
        unread_keys.check(command, load_recipe(RECIPE, [root, *source, *overrides]), [root, *source, *overrides])

    return checked


@pytest.mark.parametrize(
    ("command", "override", "says"),
    [
        ("evaluate", "data.source.path=/nonexistent.txt", "data.source.path here.txt -> /nonexistent.txt"),
        ("generate", "data.clean.min_chars=10", "data.clean.min_chars 9 -> 10"),
        ("pretrain", "data.clean.min_chars=10", "leave it out, or run `make data"),
        ("export", "train.steps=78", "export does not read train.steps, which was 77 in "),
        ("report", "train.steps=78", "report does not read train.steps"),
        ("generate", "finetune=null", "generate does not read finetune: leave it out"),
        ("generate", "evaluate.batch=3", "generate does not read evaluate.batch: leave it out"),
        ("stats", "generate.temperature=1", "stats does not read generate.temperature"),
        ("run", "evaluate.batch=3", "run does not read evaluate.batch"),
        ("estimate", "data.clean.min_chars=10", "estimate does not read data.clean.min_chars"),
    ],
)
def test_unread_overrides_are_rejected(check, command, override, says) -> None:
    with pytest.raises(RequestError) as refused:
        check(command, override)
    assert says in str(refused.value)


def test_overrides_that_agree_with_the_run_are_accepted(check) -> None:
    for command in READS:
        check(command, "train.steps=77", "train.save_every=6", "data.clean.min_chars=9", "data.workers=1")


def test_the_commands_of_one_make_share_their_overrides(check, monkeypatch) -> None:
    overrides = ("train.steps=78", "generate.temperature=1")
    monkeypatch.setenv(unread_keys.TARGETS, "pretrain generate")
    for command in ("run", "pretrain", "generate"):
        check(command, *overrides)
    monkeypatch.setenv(unread_keys.TARGETS, "pretrain")
    with pytest.raises(RequestError, match=r"pretrain does not read generate\.temperature"):
        check("pretrain", *overrides)


def test_a_hint_contains_only_overrides_that_its_target_reads(monkeypatch) -> None:
    monkeypatch.setattr(command_hints, "_target_reads", target_reads)
    monkeypatch.setattr("sys.argv", ["x", "--recipe", RECIPE, "generate.prompt=a", "run.name=b", "train.steps=9"])
    assert command_hints.make("pretrain") == 'make pretrain ARGS="run.name=b train.steps=9"'
    assert command_hints.make("evaluate") == 'make evaluate ARGS="generate.prompt=a run.name=b"'
