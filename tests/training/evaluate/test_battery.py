"""The battery: the same bytes from the same run, examples that fit into the context, and right answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_recipe
from tests.support.training.finished_run import CONTEXT, FinishedRun, finished_run
from tests.support.training.tiny_run import GPT
from training.evaluate.battery import build
from training.evaluate.battery.build import write_battery

TASKS = ("arithmetic", "cloze", "continuation", "copy", "needle", "pydocs", "text")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("run"), GPT)


@pytest.fixture(scope="module")
def folder(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("battery")
    write_battery(target, run.recipe, run.layout, run.tokenizer)
    return target


def examples(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"battery_{task}.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_run_gives_the_same_bytes(run: FinishedRun, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "battery_copy.jsonl").write_bytes((folder / "battery_copy.jsonl").read_bytes())  # as if interrupted
    write_battery(tmp_path, run.recipe, run.layout, run.tokenizer)
    assert contents(tmp_path) == contents(folder)
    assert len(contents(folder)) == 2 * len(TASKS) + 2
    other = load_recipe(
        str(run.layout.run.parent / "recipe.yaml"),
        ["evaluate.seed=1", f"train.context_length={CONTEXT}", f"train.global_batch_tokens={CONTEXT}"],
    )
    again = tmp_path / "other"
    write_battery(again, other, run.layout, run.tokenizer)
    changed = {name for name, content in contents(again).items() if content != contents(folder)[name]}
    assert changed == {f"battery_{task}.jsonl" for task in TASKS if task != "text"}


def test_the_number_of_examples(folder: Path) -> None:
    assert {task: len(examples(folder, task)) for task in TASKS} == {**dict.fromkeys(TASKS, 100), "text": 24}


def test_every_task_has_a_task_file(folder: Path) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    group = yaml.load((folder / "battery.yaml").read_text(), Loader)
    assert sorted(group["task"]) == [f"battery_{task}" for task in TASKS]
    for name in group["task"]:
        task = yaml.load((folder / f"{name}.yaml").read_text(), Loader)
        assert task["task"] == name and task["dataset_kwargs"] == {"task": name}


def test_the_answers_are_right(run: FinishedRun, folder: Path) -> None:
    texts = [example["text"] for example in examples(folder, "text")]
    for example in examples(folder, "cloze"):
        assert any(f"{example['context']} {example['word']}" in text for text in texts)
    for example in examples(folder, "continuation"):
        right = example["choices"][example["answer"]]
        assert any(f"{example['context']} {right}" in text for text in texts)
        assert len(set(example["choices"])) == 4
    for example in examples(folder, "needle"):
        right = example["choices"][example["answer"]]
        name = example["context"].rsplit("The code of ", 1)[1].split()[0]
        assert f"The code of {name} is {right}." in example["context"]
        assert sum(choice in example["context"] for choice in example["choices"]) == 1
    for example in examples(folder, "copy"):
        assert f"words: {example['answer']}\ncopy:" in example["context"][-len(example["answer"]) - 20 :]
    for example in examples(folder, "arithmetic"):
        for line in f"{example['context']} {example['answer']}".splitlines():
            left, operator, right, _, result = line.split()
            assert int(result) == (int(left) + int(right) if operator == "+" else int(left) - int(right))


def test_answers_are_at_every_place(folder: Path) -> None:
    for task in ("continuation", "needle", "pydocs"):
        assert {example["answer"] for example in examples(folder, task)} == {0, 1, 2, 3}
    depths = [example["depth"] for example in examples(folder, "needle")]
    assert depths == sorted(depths) and (depths[0], depths[-1]) == (0, 1)


def test_examples_fit_into_the_context(run: FinishedRun, folder: Path) -> None:
    for task in TASKS[:-1]:
        for example in examples(folder, task):
            answer = max(example.get("choices", [example.get("word", str(example.get("answer")))]), key=len)
            assert len(run.tokenizer.encode(f"{example['context']} {answer}")) <= CONTEXT
    needles = [len(run.tokenizer.encode(example["context"])) for example in examples(folder, "needle")]
    assert min(needles) > CONTEXT * 0.6


def test_no_examples_are_refused(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_held_out", lambda *_: iter(["one two"]))
    with pytest.raises(Exception, match=r"battery finds no examples for battery_cloze in the held-out documents of"):
        write_battery(tmp_path, run.recipe, run.layout, run.tokenizer)
