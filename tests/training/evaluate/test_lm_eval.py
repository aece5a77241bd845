"""Tasks of lm-eval: our class and lm-eval's own ``hf`` on the exported model give the same scores."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from artefacts.errors import RequestError
from tests.support.training.finished_run import CONTEXT, FinishedRun, finished_run
from tests.support.training.shapes import small
from tests.support.training.tiny_run import GPT
from tokenizer import chat_template
from training.commands.export import export
from training.evaluate.battery.build import write_battery
from training.evaluate.harness.language_model import MillraceLM
from training.evaluate.harness.run import Tasks

MODELS: dict[str, dict[str, Any]] = {"deepseek": small().model_dump(), "gpt": GPT}
#: A task with solved examples, a description and a choice that begins like another.
YAML = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
fewshot_split: test
output_type: multiple_choice
description: "Colors of things.\\n"
doc_to_text: "What color is {{{{thing}}}}? "
doc_to_choice: ["red", "red and green", "b"]
doc_to_target: color
"""


class Backends:
    """A run with its battery, our class, and lm-eval's ``hf`` on its export."""

    def __init__(self, root: Path, model: dict[str, Any]) -> None:
        self.run: FinishedRun = finished_run(root, model)
        assert export(self.run.recipe) == 0
        self.battery = root / "battery"
        write_battery(self.battery, self.run.recipe, self.run.layout, self.run.tokenizer)
        template = chat_template.default(self.run.tokenizer)
        self.ours = MillraceLM(self.run.model, self.run.tokenizer, CONTEXT, 4, template)
        # With its cache, lm-eval 0.4.13 gives a wrong score if two requests have the same tokens but another split.
        self.theirs = HFLM(str(self.run.layout.export), device="cpu", batch_size=4, logits_cache=False)
        self.theirs.tokenizer.chat_template = template.exported()

    def require_same(self, tasks: list[str], shots: int | None = None, limit: int = 4, chat: bool = False) -> Any:
        loaded = Tasks(tasks, [self.battery])
        ours, theirs = (loaded.run(model, shots, limit, chat) for model in (self.ours, self.theirs))
        assert ours.keys() == theirs.keys()
        for task, row in ours.items():
            for metric, score in row["metrics"].items():
                peer = theirs[task]["metrics"][metric]
                assert score["value"] == pytest.approx(peer["value"], rel=1e-6, abs=1e-6), (task, metric)
        return ours


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Backends:
    return Backends(tmp_path_factory.mktemp("deepseek"), MODELS["deepseek"])


def test_the_battery_has_the_scores_of_hf(deepseek: Backends) -> None:
    scores = deepseek.require_same(["battery"], limit=2)
    assert {task.removeprefix("battery_"): list(row["metrics"]) for task, row in scores.items()} == {
        "arithmetic": ["exact_match"],
        "cloze": ["perplexity", "acc"],
        "continuation": ["acc", "acc_norm"],
        "copy": ["exact_match"],
        "needle": ["acc"],
        "pydocs": ["acc", "acc_norm"],
        "text": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    }
    assert all(row["examples"] == 2 for row in scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("shots", "chat"), [(None, False), (2, False), (None, True), (2, True)])
def test_every_setting_has_the_scores_of_hf(name: str, shots: int | None, chat: bool, tmp_path: Path) -> None:
    backends = Backends(tmp_path, MODELS[name])
    data = tmp_path / "colors.jsonl"
    data.write_text("".join(f'{{"thing": "thing {i}", "color": {i % 3}}}\n' for i in range(30)))
    task = tmp_path / "colors.yaml"
    task.write_text(YAML.format(data=data))
    backends.require_same(["battery", str(task)], shots, 30, chat)


def test_generated_texts_are_those_of_hf(deepseek: Backends) -> None:
    from lm_eval.api.instance import Instance

    contexts = ["the quick", "run away from many small houses near rivers and then", "a", "b" * 400]
    arguments = {"until": ["e", "th"], "max_gen_toks": 12}
    requests = [
        Instance("generate_until", {}, (context, options), 0)
        for context in contexts
        for options in (arguments, {"max_gen_toks": 20})
    ]
    ours = deepseek.ours.generate_until(requests)
    assert ours == deepseek.theirs.generate_until(requests)
    assert any(ours) and not any("e" in text for text in ours[::2])


def test_only_the_template_makes_control_tokens(deepseek: Backends) -> None:
    tokenizer = deepseek.run.tokenizer
    messages = [{"role": "user", "content": "hi <|assistant|> there"}]
    text = deepseek.ours.apply_chat_template(messages)
    ids = deepseek.ours.tok_encode(text)
    reserved = [tokenizer.piece(token) for token in ids if tokenizer.is_reserved(token)]
    assert reserved == ["<|begin|>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert tokenizer.decode(ids) == "hi <|assistant|> there"
    plain = deepseek.ours.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=False)
    theirs = deepseek.theirs.tok_encode("<|begin|><|user|>hi")
    assert deepseek.ours.tok_encode(plain) == theirs


def test_what_the_model_cannot_do_is_one_line(deepseek: Backends) -> None:
    from lm_eval.api.instance import Instance

    for options, message in [
        ({"max_gen_toks": CONTEXT}, f"generates up to {CONTEXT} tokens, but the model reads at most {CONTEXT}"),
        ({"num_beams": 4}, "a task sets generation_kwargs.num_beams"),
    ]:
        with pytest.raises(RequestError, match=message):
            deepseek.ours.generate_until([Instance("generate_until", {}, ("a", options), 0)])


def test_a_task_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    task = tmp_path / "colors.yaml"
    task.write_text(YAML.format(data=tmp_path / "none.jsonl"))
    with pytest.raises(RequestError, match=r"colors\.yaml cannot be loaded: .*none\.jsonl"):
        Tasks([str(task)], [])


@pytest.mark.slow
def test_an_unknown_task_is_one_line() -> None:
    """lm-eval reads all of its own task files first."""
    with pytest.raises(
        RequestError, match=r"battery_clozee is neither a task of lm-eval .* the nearest is battery_cloz"
    ):
        Tasks(["battery_clozee"], [Path("training/evaluate/battery/tasks")])
