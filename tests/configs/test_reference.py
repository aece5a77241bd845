"""The recipe reference is complete and up to date, and correctly says which keys create a different run."""

import subprocess
import sys

import pytest

from artefacts.errors import RequestError
from configs.explain import explain
from configs.identities import documents_identity, tokenizer_identity, tokens_identity
from configs.load import load_recipe
from configs.reference import PAGE, WRITE_PAGE, Key, keys, markdown, pages
from configs.schema.base import Section
from tests.support.paths import CHECKOUT, DEMO_RECIPE


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), f"run `{WRITE_PAGE}`"


def test_every_key_and_section_is_described() -> None:
    for key in keys():
        assert key.meaning.endswith((".", "?")) and key.meaning[0] in '`"' + key.meaning[0].upper(), key.name
    for page in pages():
        assert page.section.__doc__ and page.section.__doc__ != Section.__doc__, page.name


def test_the_described_effects_agree_with_the_identities() -> None:
    recipe = load_recipe(DEMO_RECIPE)
    documents = documents_identity(recipe)
    parts = {
        "data.source": documents["sources"]["pydocs"],
        "data.clean": documents["clean"],
        "data.tokens": tokens_identity(recipe)["tokens"],
        "tokenizer": tokenizer_identity(recipe)["tokenizer"],
    }
    for name, identity in parts.items():
        known = [key for key in keys() if key.name.rpartition(".")[0] == name]
        for key in known:
            in_identity = key.name.rpartition(".")[2] in identity
            assert in_identity == (key.effect == "data") or key.name == "tokenizer.path", key.name
    for name, identity in {"model": recipe.model.identity(), "train": recipe.train.identity()}.items():
        for key in keys():
            if key.name.rpartition(".")[0] == name and key.family in ("", "deepseek"):
                assert (key.name.rpartition(".")[2] in identity) == (key.effect == "run"), key.name


def _named(name: str) -> Key:
    return next(key for key in keys() if key.name == name)


def test_types_defaults_and_bounds() -> None:
    assert (_named("train.micro_batch").type, _named("train.micro_batch").default) == ("integer, above 0", "none")
    assert _named("data.clean.min_language_score").type == "number, 0 to 1"
    assert _named("run.replace").type == "true or false or `finetune`"
    assert _named("run.seed").type == "integer, at least 0" and _named("run.name").default == "required"
    assert _named("launch.slurm.memory").type == "text, such as `8G`"
    assert _named("generate.weights").type == "path"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.micro_batch", ["type      integer, above 0", "You can change it and resume", "configs/node.yaml: 8"]),
        ("train", ["Losses and balancing", "micro_batch  ", "sections: train.optimizer, train.schedule"]),
        ("data.sources.web.delimiter", ["read by   data.source.kind: csv", "rebuilds the data"]),
        ("data.sources", ["sections by name"]),
        ("model.hidden_size", ["families  deepseek, gpt, encoder, encoder_decoder"]),
        ("model.backbone.window", ["families  gpt, encoder\n"]),
        ("model.rope_scaling", ["beta_fast"]),
        ("finetune.epochs", ["configs/demo.yaml: 1", "configs/instructions.yaml (sft): 3", "yaml (brief): 1"]),
        ("finetune.brief.epochs", ["finetune.brief.epochs\n", "set in    configs/instructions.yaml (brief): 1"]),
        ("", ["data.clean", "KEY=SECTION.KEY"]),
    ],
)
def test_a_key_is_explained(name: str, lines: list[str]) -> None:
    text = explain(name)
    for line in lines:
        assert line in text
    assert "`" not in text and "](" not in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.micro_bach", "unknown key train.micro_bach; the nearest key is train.micro_batch"),
        ("finetune.epoch", "unknown key finetune.epoch; the nearest key is finetune.epochs"),
        ("finetune.dpo.lora.rnk", "unknown key finetune.dpo.lora.rnk; the nearest key is finetune.dpo.lora.rank"),
        ("micro_batch", "unknown key micro_batch; there is train.micro_batch"),
        ("train.clip", "unknown key train.clip: it was renamed to train.max_grad_norm"),
    ],
)
def test_an_unknown_key_names_the_nearest_or_new_name(name: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        explain(name)
    assert str(refused.value) == message


def test_an_unknown_key_exits_2() -> None:
    argv = [sys.executable, "-m", "configs", "explain", "train.micro_bach"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown key") and done.stderr.count("\n") == 1
