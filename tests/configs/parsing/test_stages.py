"""Fine-tuning stages in a recipe: one section or a list, names, overrides, and errors."""

import pytest
import yaml

from artefacts.errors import RequestError
from configs.load import dump_recipe, load_recipe
from configs.parsing.key_lookup import generic_key, kind_of
from configs.schema import Recipe

STAGE = {"learning_rate": 1e-4, "max_length": 16}


def load(tmp_path, finetune, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "r"}, "finetune": finetune}))
    return load_recipe(path, [*overrides])


def test_a_single_section_is_a_stage_named_after_its_method(tmp_path) -> None:
    recipe = load(tmp_path, STAGE, "finetune.epochs=2", "finetune.sft.batch_examples=4")
    (stage,) = recipe.finetune
    assert (stage.name, stage.epochs, stage.batch_examples) == ("sft", 2, 4)
    assert recipe.start_of(stage) == "pretrain" and recipe.stage_key(stage, "epochs") == "finetune.epochs"


def test_stages_follow_each_other_unless_they_name_a_start(tmp_path) -> None:
    stages = [STAGE, {**STAGE, "name": "b"}, {**STAGE, "name": "c", "start_from": "sft"}]
    recipe = load(tmp_path, stages, "finetune.c.epochs=3")
    assert [recipe.start_of(stage) for stage in recipe.finetune] == ["pretrain", "sft", "sft"]
    assert [stage.epochs for stage in recipe.finetune] == [1, 1, 3]
    assert recipe.stage_key(recipe.stage("b"), "epochs") == "finetune.b.epochs"


def test_a_dumped_recipe_is_read_back(tmp_path) -> None:
    recipe = load(tmp_path, [STAGE, {**STAGE, "name": "b"}])
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_no_section_and_null_mean_no_stage(tmp_path) -> None:
    assert load(tmp_path, None).finetune == load(tmp_path, STAGE, "finetune=null").finetune == ()


@pytest.mark.parametrize(
    ("stages", "override", "message"),
    [
        ([STAGE, {**STAGE, "name": "b"}], "finetune.epochs=2", "several fine-tuning stages (sft, b): write finetune.s"),
        (STAGE, "finetune.b.epochs=2", "there is no fine-tuning stage b, only sft"),
        (STAGE, "finetune.epoch=2", "unknown key finetune.epoch; the nearest key is finetune.epochs"),
        ([STAGE, {**STAGE, "name": "b"}], "finetune.b.epochs=x", "finetune.b.epochs must be a valid number, not 'x'"),
        ([STAGE, STAGE], "run.seed=1", "finetune: two stages are called sft"),
        ([STAGE, {**STAGE, "name": "b"}], "finetune.sft.start_from=b", "finetune.sft.start_from (b) is not an earlier"),
        (STAGE, "finetune.name=pretrain", "name (pretrain) is taken"),
        (STAGE, "finetune.name=tokens", "name (tokens) is taken"),
        (STAGE, "finetune.name=epochs", "name (epochs) is taken"),
        (
            STAGE,
            "finetune.name=a b",
            "finetune.name: 'a b' is not valid: use letters, digits, '_' and '-'",
        ),
        (STAGE, "finetune=3", "finetune is a section, not 3: set its keys, such as finetune.name"),
        ([STAGE, {**STAGE, "name": "b"}], "finetune.b=3", "b is a stage: set its keys, such as finetune.b.epochs"),
        (
            [STAGE, {**STAGE, "name": "b"}],
            "finetune.b.epoch=2",
            "unknown key finetune.b.epoch; the nearest key is finetune.b.e",
        ),
    ],
)
def test_wrong_stages_are_explained(tmp_path, stages, override, message) -> None:
    with pytest.raises(RequestError) as refused:
        load(tmp_path, stages, override)
    assert message in str(refused.value)


def test_keys_of_a_named_stage_are_looked_up(tmp_path) -> None:
    assert generic_key("finetune.b.epochs") == "finetune.epochs" and kind_of("finetune.b.epochs") is float
