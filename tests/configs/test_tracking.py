"""Keys for samples, W&B and early stopping: what is refused, and what belongs to a run's identity."""

import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from tests.support.paths import CHECKOUT

DEMO = CHECKOUT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.early_stopping.patience=2", "train.eval_every=0"], ["early_stopping needs validations", "eval_every"]),
        (["train.early_stopping.min_delta=0.1"], ["train.early_stopping.patience", "missing"]),
        (["finetune.early_stopping.patience=2", "finetune.eval_every=0"], ["early_stopping needs validations"]),
        (["train.samples.prompts=[]"], ["train.samples", "prompts has no text"]),
        (["train.samples.prompts=[a, '']"], ["train.samples", "prompts has no text, or an empty one"]),
        (["train.wandb.entity=me"], ["train.wandb.project", "missing"]),
        (["train.wandb={project: a, mode: disabled}"], ["train.wandb.mode must be 'online' or 'offline'"]),
    ],
)
def test_invalid_keys_are_refused_by_name(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        load_recipe(DEMO, overrides)
    assert [word for word in words if word not in str(refused.value)] == []


def test_only_language_models_complete_prompts() -> None:
    recipe = CHECKOUT / "configs" / "teaching" / "classifier.yaml"
    with pytest.raises(RequestError, match=r"train\.samples: model\.family=classifier is not a language model"):
        load_recipe(recipe, ["train.samples.prompts=[a]"])


def test_what_a_run_reports_may_change_but_not_when_it_ends() -> None:
    plain = load_recipe(DEMO)
    more = load_recipe(DEMO, ["train.samples.prompts=[a]", "train.wandb.project=a", "train.wandb.tags=[b]"])
    assert more.train.identity() == plain.train.identity()
    assert "early_stopping" not in plain.train.identity(), "older runs have no such key"
    early = load_recipe(DEMO, ["train.early_stopping.patience=2", "finetune.early_stopping.patience=3"])
    assert early.train.identity()["early_stopping"] == {"patience": 2, "min_delta": 0.0}
    assert early.finetune[0].identity()["early_stopping"]["patience"] == 3


@pytest.mark.parametrize("key", ["finetune.eval_every", "train.eval_every", "train.eval_batches"])
def test_validations_may_change_when_a_run_resumes_unless_they_end_it(key: str) -> None:
    section = key.split(".")[0]
    for early, same in ([], True), ([f"{section}.early_stopping.patience=2"], False):
        recipes = [load_recipe(DEMO, [f"{key}={number}", *early]) for number in (2, 4)]
        runs = [recipe.train if section == "train" else recipe.finetune[0] for recipe in recipes]
        assert (runs[0].identity() == runs[1].identity()) is same
