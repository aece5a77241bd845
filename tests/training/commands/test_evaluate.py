"""``evaluate`` of a run: other texts, tasks, checkpoints, and several runs next to each other."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from artefacts import manifest
from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.training.finished_run import CONTEXT, FinishedRun, finished_run, later_checkpoint
from tests.support.training.tiny_run import GPT
from training.commands.checkpoint_curve import evaluate_checkpoints
from training.commands.compare_runs import compare_runs
from training.commands.evaluate import evaluate
from training.evaluate import loss, results

TEXT = "A small text of my own, in which rivers run.\n" * 20
TASK = """
task: endings
custom_dataset: !function endings_data.load
test_split: test
output_type: multiple_choice
doc_to_text: "the quick brown"
doc_to_choice: ["fox", "dog", "sun"]
doc_to_target: 0
"""
DATA = """
import datasets
def load(**_):
    return {"test": datasets.Dataset.from_list([{"number": i} for i in range(3)])}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("run"), GPT)


def with_overrides(run: FinishedRun, *overrides: str) -> Recipe:
    sizes = (f"train.context_length={CONTEXT}", f"train.global_batch_tokens={CONTEXT}", "tokenizer.vocab_size=128")
    sizes += (f"model.max_position_embeddings={CONTEXT}",)
    return load_recipe(str(run.layout.run.parent / "recipe.yaml"), [*sizes, *overrides])


def evaluation(run: FinishedRun) -> dict[str, Any]:
    return json.loads((run.layout.evaluation / "evaluation.json").read_text())


def text_recipe(run: FinishedRun, folder: Path, *more: str) -> Recipe:
    (folder / "mine.txt").write_text(TEXT)
    source = f"{{kind: text, path: {folder / 'mine.txt'}, chunk_chars: 0}}"
    return with_overrides(run, f"evaluate.texts={{mine: {source}}}", *more)


def test_a_text_of_ones_own(run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(text_recipe(run, tmp_path)) == 0
    facts = evaluation(run)["pretrain"]["texts"]["mine"]
    ids = [*run.tokenizer.encode(TEXT), run.tokenizer.end_of_text_id]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            window = torch.tensor([ids[start : start + CONTEXT + 1]])
            nats += float(F.cross_entropy(run.model(window[:, :-1])[0], window[0, 1:], reduction="sum"))
    assert facts["documents"] == 1 and facts["tokens"] == len(ids) - 1 and facts["bytes"] == len(TEXT.encode())
    assert facts["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert facts["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT), rel=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert f"text mine    {len(ids) - 1:,} tokens, {len(TEXT):,} bytes" in capsys.readouterr().out
    assert list((run.layout.evaluation_log / "tensorboard" / "pretrain").iterdir())
    assert evaluate(text_recipe(run, tmp_path)) == 0
    assert "up to date" in capsys.readouterr().out
    (tmp_path / "mine.txt").write_text(TEXT + "more")
    recipe = with_overrides(
        run, f"evaluate.texts={{mine: {{kind: text, path: {tmp_path / 'mine.txt'}, chunk_chars: 0}}}}"
    )
    assert evaluate(recipe) == 0
    assert evaluation(run)["pretrain"]["texts"]["mine"]["bytes"] == len(TEXT) + 4


def test_a_part_of_a_text(run: FinishedRun, tmp_path: Path) -> None:
    assert evaluate(text_recipe(run, tmp_path, "evaluate.max_tokens=100")) == 0
    facts = evaluation(run)["pretrain"]
    assert facts["texts"]["mine"]["tokens"] == facts["tokens"] == 100
    assert facts["texts"]["mine"]["bytes"] == 100


def test_an_interrupted_evaluation_continues(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = text_recipe(run, tmp_path, "evaluate.max_tokens=90")
    measured = []

    def interrupted(model: Any, objective: Any, batches: Any, device: Any, name: str) -> loss.Measured:
        if name.startswith("text") and measured == ["validation, pretrain"]:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(name)
        return loss.measure(model, objective, batches, device, name)

    monkeypatch.setattr(results, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe)
    assert evaluate(recipe) == 0
    assert measured == ["validation, pretrain", "killed", "text mine"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluate.texts={mine: {kind: text, path: none.txt}}"],
            r"evaluate\.texts\.mine\.path: none\.txt is neither a file nor a",
        ),
        (["evaluate.tasks=[none.yaml]"], r"evaluate\.tasks: none\.yaml: there is no such file"),
        (["evaluate.tasks=[battery]", "evaluate.task_path=none"], r"evaluate\.task_path=none: there is no such folder"),
    ],
)
def test_missing_files_are_refused_in_one_line(run: FinishedRun, overrides: list[str], message: str) -> None:
    assert evaluate(with_overrides(run)) == 0
    before = evaluation(run)
    with pytest.raises(RequestError, match=message) as caught:
        evaluate(with_overrides(run, *overrides))
    assert "\n" not in str(caught.value)
    assert evaluation(run) == before


def test_a_missing_data_file_is_refused_in_one_line(run: FinishedRun, tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\n")
    with pytest.raises(RequestError, match=r"task\.yaml reads none\.jsonl, and there is no such file"):
        evaluate(with_overrides(run, f"evaluate.tasks=[{task}]"))
    task.write_text("- not a task\n")
    with pytest.raises(RequestError, match=r"task\.yaml is not a task file"):
        evaluate(with_overrides(run, f"evaluate.tasks=[{task}]"))


def test_without_lm_eval_tasks_are_refused(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(
        RequestError, match=r"install it with \.venv/bin/python -m pip install -c requirements-dev\.lock lm"
    ):
        evaluate(with_overrides(run, "evaluate.tasks=[battery]"))


def test_a_task_file_of_ones_own(run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "endings.yaml").write_text(TASK)
    (tmp_path / "endings_data.py").write_text(DATA)
    recipe = with_overrides(run, f"evaluate.tasks=[{tmp_path / 'endings.yaml'}]", "evaluate.limit=2")
    assert evaluate(recipe) == 0
    scores = evaluation(run)["pretrain"]["tasks"]["endings"]
    assert scores["examples"] == 2 and scores["shots"] == 0 and scores["metrics"]["acc"]["stderr"] == 0
    assert "endings acc" in capsys.readouterr().out
    (tmp_path / "endings_data.py").write_text(DATA.replace("range(3)", "range(1)"))
    assert evaluate(recipe) == 0
    assert evaluation(run)["pretrain"]["tasks"]["endings"]["examples"] == 1


def test_every_checkpoint_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path, GPT)
    recipe = text_recipe(run, tmp_path)
    assert evaluate_checkpoints(recipe) == 0
    later_checkpoint(run, 4)
    capsys.readouterr()
    assert evaluate_checkpoints(recipe) == 0
    output = capsys.readouterr()
    assert "step-00000004" in output.err and "step-00000000" not in output.err
    rows = json.loads((run.layout.evaluation_log / "checkpoints.json").read_text())["stages"]["pretrain"]["checkpoints"]
    assert [row["step"] for row in rows] == [0, 4]
    assert {key: rows[0][key] for key in ("loss", "bits_per_byte", "texts")} == {
        key: rows[1][key] for key in ("loss", "bits_per_byte", "texts")
    }
    assert evaluate(recipe) == 0
    assert evaluation(run)["pretrain"]["loss"] == rows[0]["loss"]
    assert [line.split()[:2] for line in output.out.splitlines()[1:3]] == [["pretrain", "0"], ["pretrain", "4"]]
    assert not list(run.layout.evaluation_log.glob("work-*"))
    assert evaluate_checkpoints(with_overrides(run)) == 0  # without the text, everything is measured again
    rows = json.loads((run.layout.evaluation_log / "checkpoints.json").read_text())["stages"]["pretrain"]["checkpoints"]
    assert [row["texts"] for row in rows] == [{}, {}]


def test_runs_next_to_each_other(run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = finished_run(tmp_path, GPT, seed=1)
    assert evaluate(with_overrides(run)) == 0 and evaluate(with_overrides(other)) == 0
    capsys.readouterr()
    assert compare_runs([str(run.layout.run), str(other.layout.run)]) == 0
    output = capsys.readouterr()
    assert "tiny pretrain" in output.out and f"{other.layout.run} pretrain" in output.out
    for one in (run, other):
        assert f"{evaluation(one)['pretrain']['bits_per_byte']:.3f}" in output.out
    assert "note:" not in output.err
    with pytest.raises(RequestError, match="has no evaluation"):
        compare_runs([str(run.layout.run), str(tmp_path / "none")])


def test_results_do_not_depend_on_the_machine(run: FinishedRun) -> None:
    assert evaluate(with_overrides(run)) == 0
    files = manifest.require(run.layout.evaluation, "evaluate").files
    assert list(files) == ["evaluation.json"]


def test_a_stage_is_compared_with_the_weights_that_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path, GPT)
    stages = (
        "{name: first, learning_rate: 1e-3, max_length: 32}",
        "{name: second, learning_rate: 1e-3, max_length: 32}",
    )
    recipe = with_overrides(run, f"finetune=[{', '.join(stages)}]")
    for name in ("first", "second"):
        shutil.copytree(run.layout.pretrain, run.layout.finetune(name))
    measured: dict[str, Path] = {}

    def answers(_: Any, stage: str, checkpoint: Path, when: str) -> dict[str, Any]:
        measured[f"{stage} {when}"] = checkpoint
        return {"examples": 1, "loss": 1.0}

    monkeypatch.setattr(results.Evaluation, "_answers", answers)
    monkeypatch.setattr(results.Evaluation, "_validation", lambda *_: {"experts": {}})
    monkeypatch.setattr(results.Evaluation, "_baselines", lambda *_: {})
    evaluation = results.Evaluation(recipe, run.layout, {}, tmp_path, tmp_path)
    folders = {"pretrain": run.layout.pretrain, **{name: run.layout.finetune(name) for name in ("first", "second")}}
    checkpoints = {name: folder / "checkpoints" / run.checkpoint.name for name, folder in folders.items()}
    evaluation.run(checkpoints, 1)
    assert measured == {
        "first before": checkpoints["pretrain"],
        "first after": checkpoints["first"],
        "second before": checkpoints["first"],
        "second after": checkpoints["second"],
    }
    shutil.rmtree(folders["first"])
    (tmp_path / "second-before.json").unlink()
    with pytest.raises(RequestError, match="second cannot be compared with its start weights: run `make finetune"):
        evaluation.run({name: checkpoints[name] for name in ("pretrain", "second")}, 1)
