"""Commands describe the weights that they read, and data on which weights were trained are protected."""

import shutil
from types import SimpleNamespace

import pytest

from artefacts import lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.stage import open_stage
from configs.checks import data_guard, run_weights
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.training_runs import begun, saved


def write_artefact(folder, inputs=None, content="one") -> str:
    """Write an artefact; returns its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(content)
    written = Manifest(folder.name, {"n": content}, inputs or {}, {}, {}, manifest.describe_files(folder))
    manifest.write(folder, written)
    return written.fingerprint


@pytest.fixture
def run(tmp_path):
    """A run with tokens, examples, a finished pretraining and a finished fine-tuning, without models."""
    layout = RunLayout(tmp_path / "r", tmp_path / "r")
    tokenizer = write_artefact(layout.tokenizer)
    documents = write_artefact(layout.documents)
    tokens = write_artefact(layout.tokens, {"documents": documents, "tokenizer": tokenizer})
    examples = write_artefact(layout.examples_of("sft"), {"tokenizer": tokenizer})
    pretrain = begun(layout.run, "pretrain", {"tokens": tokens, "tokenizer": tokenizer})
    ended = pretrain.finish(saved(pretrain, 4))
    inputs = {"examples": examples, "tokenizer": tokenizer, "weights": ended.details["weights"], "adapter": "elsewhere"}
    finetune = begun(layout.run, "finetune", inputs)
    finetune.finish(saved(finetune, 4))
    return SimpleNamespace(layout=layout, pretrain=pretrain, finetune=finetune)


def line(training, step: int, why: str = "") -> str:
    checkpoint = training.folder / "checkpoints" / f"step-{step:08d}"
    return run_weights.line(checkpoint, manifest.require(checkpoint, "pretrain"), why)


def test_the_line_contains_stage_step_and_path(run) -> None:
    path = run.finetune.folder / "checkpoints" / "step-00000004"
    assert line(run.finetune, 4) == f"weights: fine-tuned (sft), step 4 of 4: {path}"
    saved(run.pretrain, 2)
    assert "pretrained, step 2 of 4, training is not finished: " in line(run.pretrain, 2)
    saved(run.pretrain, 0, imported={"model.safetensors": "f"})
    assert "pretrained, imported: " in line(run.pretrain, 0)
    early = saved(run.finetune, 3, {"stopped_early": True, "validation_loss": 2.0}, keep_best=True)
    saved(run.finetune, 1, {"validation_loss": 1.0}, keep_best=True)
    run.finetune.finish(early)
    assert "fine-tuned (sft), step 3 of 4, where training ended early: " in line(run.finetune, 3)
    assert "fine-tuned (sft), step 1 of 4, the lowest validation loss: " in line(run.finetune, 1)
    assert line(run.pretrain, 2, "why").endswith(" (not current: why)")


def test_weights_are_current_until_their_training_data_is_replaced(run) -> None:
    assert run_weights.stale(run.layout, "pretrain") == run_weights.stale(run.layout, "sft") == ""
    run_weights.check_finetuning(run.layout, "sft")
    write_artefact(run.layout.examples_of("sft"), content="two")
    assert run_weights.stale(run.layout, "pretrain") == ""
    with pytest.raises(
        RequestError, match=r"not current \(.*examples/sft was replaced since\).*generate\.stage=pretrain"
    ):
        run_weights.check_finetuning(run.layout, "sft")
    again = begun(run.layout.run, "pretrain", {"tokens": "other"})
    again.finish(saved(again, 4, parameters="other"))
    assert "pretrain was replaced since" in run_weights.stale(run.layout, "sft")
    assert len(run_weights.outdated(run.layout)) == 2


def test_another_tokenizer_is_refused(run) -> None:
    checkpoint = run.pretrain.folder / "checkpoints" / "step-00000004"
    saved_there = manifest.require(checkpoint, "pretrain")
    run_weights.check_tokenizer(checkpoint, saved_there, run.layout)
    write_artefact(run.layout.tokenizer, content="two")
    with pytest.raises(RequestError, match="trained with another tokenizer"):
        run_weights.check_tokenizer(checkpoint, saved_there, run.layout)


def test_missing_weights_are_explained(run, tmp_path) -> None:
    layout = RunLayout(tmp_path / "new", tmp_path / "new")
    assert "is not trained: run `make pretrain" in str(run_weights.none_yet(layout, "pretrain"))
    begun(layout.run)
    assert "has saved no checkpoint yet" in str(run_weights.none_yet(layout, "pretrain"))
    assert run_weights.unfinished(layout) == [f"{layout.pretrain}: training is not finished; it has no checkpoint yet"]
    with lock.hold(layout.pretrain):
        assert "the running training saves one every train.save_every steps" in str(
            run_weights.none_yet(layout, "pretrain")
        )


@pytest.mark.parametrize("name", ["documents", "tokenizer", "tokens", "examples"])
def test_data_that_weights_were_trained_on_is_not_replaced_by_default(run, name) -> None:
    overrides = [f"run.root={run.layout.run.parent}", f"run.name={run.layout.run.name}"]
    recipe = load_recipe("configs/demo.yaml", overrides)
    folder = run.layout.examples_of("sft") if name == "examples" else getattr(run.layout, name)
    with pytest.raises(
        RequestError, match=r"was trained on .* would replace \(n one -> two.*\).*run\.replace=(true|finetune)"
    ):
        _rebuild(recipe, name, folder)
    replaced = load_recipe("configs/demo.yaml", [*overrides, "run.replace=true"])
    held = lock.hold(run.layout.finetune("sft")), lock.hold(run.layout.pretrain)
    with held[0], held[1], pytest.raises(RequestError, match="is run by process"):
        _rebuild(replaced, name, folder)
    _rebuild(replaced, name, folder)
    assert (folder / "file").read_text() == "two"


def test_examples_of_a_stage_may_change_although_another_stage_has_the_same(run) -> None:
    recipe = load_recipe("configs/demo.yaml", [f"run.root={run.layout.run.parent}", f"run.name={run.layout.run.name}"])
    same = run.layout.examples_of("other")
    shutil.copytree(run.layout.examples_of("sft"), same)
    _rebuild(recipe, "examples", same)
    assert (same / "file").read_text() == "two"


def _rebuild(recipe, name, folder) -> None:
    check = data_guard.guard(recipe, name, folder.name if name == "examples" else None)
    with open_stage(name, folder, {"n": "two"}, {}, check_replacing=check) as stage:
        (stage.work / "file").write_text("two")
        stage.publish({}, {})


def test_data_that_another_run_was_trained_on_is_kept(run) -> None:
    root = run.layout.run.parent
    (root / "other").mkdir()
    overrides = [f"run.root={root}", "run.name=other", f"data.root={run.layout.data}", "run.replace=true"]
    recipe = load_recipe("configs/demo.yaml", overrides)
    with pytest.raises(RequestError, match=r"r/pretrain was trained on .*or keep its data \(data\.root=…\)"):
        _rebuild(recipe, "tokens", run.layout.tokens)


def test_a_requeued_job_replaces_no_data(run, monkeypatch) -> None:
    overrides = [f"run.root={run.layout.run.parent}", f"run.name={run.layout.run.name}", "run.replace=true"]
    recipe = load_recipe("configs/demo.yaml", overrides)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RequestError, match="which this would replace"):
        _rebuild(recipe, "tokens", run.layout.tokens)


def test_differences_are_printed_before_a_rebuild(tmp_path, capsys) -> None:
    for rate in (1, 2):
        with open_stage("documents", tmp_path / "documents", {"clean": {"min_chars": rate}}, {}) as stage:
            stage.publish({}, {})
    assert f"{tmp_path / 'documents'}: will be rebuilt: data.clean.min_chars 1 -> 2" in capsys.readouterr().out
