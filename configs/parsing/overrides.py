"""Overrides of recipe keys: ``section.key=value`` on the command line."""

import copy
from typing import Any

import yaml

from artefacts.errors import RequestError
from configs.parsing import recipe_yaml
from configs.parsing.key_lookup import kind_of, takes_text
from configs.parsing.recipe_yaml import RecipeYamlError
from configs.schema.finetune import FinetuneSection, stage_name


def overridden(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of a recipe's tree with overrides applied."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _override(tree, override)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(
            f"{override!r} is not an override: write section.key=value, in quotes if the value has spaces"
        )
    try:
        # For an optional key, null means None, not the string.
        literal = takes_text(key) and (text != "null" or kind_of(key) is str)
        value = text if literal else recipe_yaml.parse(text, kind_of, key)
    except RecipeYamlError as error:
        raise RequestError(f"override {override}: {error.message}") from None
    except yaml.YAMLError:
        value = text
    *parents, leaf = key.split(".")
    node = tree
    if len(parents) and parents[0] == "finetune":
        node, parents = _stage(tree, parents, override)
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = value


def _stage(tree: dict[str, Any], parents: list[str], override: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fine-tuning stage that an override changes, and the sections below it.

    Args:
        tree: the recipe's tree. A stage is added if there is none.
        parents: the sections in the override's key: ``finetune``, perhaps a stage's name, and so on.
        override: the override, for the error message.

    Raises:
        RequestError: there are several stages, and the key names none of them; or it names a stage, not one of its
            keys.
    """
    if not tree.get("finetune"):
        tree["finetune"] = {}
    stages = tree["finetune"] if isinstance(tree["finetune"], list) else [tree["finetune"]]
    trees = {stage_name(stage): stage for stage in stages if isinstance(stage, dict)}
    if len(parents) > 1 and parents[1] in trees:
        return trees[parents[1]], parents[2:]
    if len(parents) > 1 and parents[1] not in FinetuneSection.named_fields():
        raise RequestError(
            f"override {override}: there is no fine-tuning stage {parents[1]}, only {', '.join(trees) or 'none'}"
        )
    key = override.partition("=")[0].removeprefix("finetune.")
    if key in trees and key not in FinetuneSection.named_fields():
        raise RequestError(f"override {override}: {key} is a stage: set its keys, such as finetune.{key}.epochs")
    if len(trees) == 1:
        return next(iter(trees.values())), parents[1:]
    raise RequestError(
        f"override {override}: the recipe has several fine-tuning stages ({', '.join(trees)}): write "
        f"finetune.{next(iter(trees), 'NAME')}.{key}=…"
    )
