"""Recipe values that YAML would parse differently from how a person reads them."""

import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from tests.support.paths import DEMO_RECIPE

DEMO = DEMO_RECIPE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("020", "train.steps: 020 is not a plain decimal number: write 20"),
        ("-08", "train.steps: -08 is not a plain decimal number: write -8"),
        ("0_20", "train.steps: 0_20 is not a plain decimal number: write 20"),
        ("0x10", "train.steps: 0x10 is not a plain decimal number: write 16"),
        ("0b11", "train.steps: 0b11 is not a plain decimal number: write 3"),
        ("1:30", "train.steps: 1:30 is not a number"),
        ("yes", "train.steps: yes is not a number"),
        ("On", "train.steps: On is not a number"),
        ("true", "train.steps: true is not a number"),
    ],
)
def test_ambiguous_numbers_are_rejected(tmp_path, value, message):
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, [f"train.steps={value}"])
    assert str(fault.value) == f"override train.steps={value}: {message}"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run: {{name: a}}\ntrain:\n  steps: {value}\n")
    with pytest.raises(RequestError) as fault:
        load_recipe(path)
    assert str(fault.value) == f"{path}: line 3: {message}"


@pytest.mark.parametrize(
    "key", ["train.learning_rate", "train.zero_stage", "train.schedule.at", "train.schedule.warmup_steps"]
)
def test_numeric_keys_reject_ambiguous_values(key):
    value = "[{}, 1]" if key == "train.schedule.at" else "{}"
    for ambiguous in ("01", "1:30", "off"):
        with pytest.raises(RequestError, match=rf"^override .*: {key}: {ambiguous} is not a"):
            load_recipe(DEMO, [f"{key}={value.format(ambiguous)}"])


def test_unambiguous_values_are_accepted():
    assert load_recipe(DEMO, ["train.steps=1_000"]).train.steps == 1000
    assert load_recipe(DEMO, ["train.learning_rate=3e-4"]).train.learning_rate == 3e-4
    for yes in ("yes", "on", "true"):
        assert load_recipe(DEMO, [f"generate.crop={yes}"]).generate.crop is True


def test_text_keys_accept_ambiguous_words(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run: {name: 020}\n"
        "data:\n  sources:\n    on: {kind: pydocs, packages: [yes, 1:30, 007]}\n"
        "    1: {kind: jsonl, path: 2024-01-01, text_field: no, target_field: 1e3, encoding: 'utf-8'}\n"
        "launch: {slurm: {time: 24:00:00, partition: ~}}\n"
    )
    recipe = load_recipe(path)
    assert recipe.run.name == "020" and list(recipe.data.sources) == ["on", "1"]
    assert recipe.data.sources["on"].packages == ("yes", "1:30", "007")
    source = recipe.data.sources["1"]
    assert (source.path, source.text_field, source.target_field) == ("2024-01-01", "no", "1e3")
    assert recipe.launch.slurm.time == "24:00:00" and recipe.launch.slurm.partition is None


def test_quotes_make_an_ambiguous_number_text():
    with pytest.raises(RequestError, match=r"write 8, or put it in quotes if it is text"):
        load_recipe(DEMO, ["train.deepspeed.x=08"])
    assert load_recipe(DEMO, ["train.deepspeed.x='08'"]).train.deepspeed == {"x": "08"}


def test_anchors_and_merge_keys_are_resolved(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run: {name: a}\ndata:\n  sources:\n    a: &web {kind: jsonl, path: 1, weight: 2}\n    b: {<<: *web, path: 3}\n"
    )
    sources = load_recipe(path).data.sources
    assert sources["a"].path == "1" and sources["b"].path == "3" and sources["b"].weight == 2
