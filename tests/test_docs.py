"""Everything that the documents name exists: files, links, recipe keys, recipes and make targets.

So do the documents and headings that the product's messages name.
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_recipe
from configs.reference import keys, pages
from configs.schema import Recipe
from tests.support.paths import CHECKOUT

#: All but the change log, which names what was removed.
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
_FOLDERS = r"(?:artefacts|benchmarks|configs|docs|launch|pipeline|tests|tokenizer|training|\.ci|\.github)"
#: A file of the checkout, or a folder of it. Folders of a run, such as tokenizer/, look like folders of the checkout.
_PATH = re.compile(rf"(?<![\w./-]){_FOLDERS}/[\w./-]*(?:\.(?:py|c|yaml|yml|md|txt|png)\b|/(?![\w*.]))")
_KEY = re.compile(r"`((?:run|data|tokenizer|model|train|finetune|evaluate|generate|launch)(?:\.[a-z_0-9]+)+)[`=:]")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
#: A document in a message, with or without a heading: docs/page.md, "Heading".
_DOCUMENT = re.compile(r"\bdocs/[\w/-]+\.md(?:, \"([^\"]+)\")?")
#: Words after "make" at the start of a line of prose.
_PROSE = {"a", "it", "sure", "the", "them", "this"}


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_files_and_folders_exist(document: Path) -> None:
    names = {match[0] for match in _PATH.finditer(document.read_text(encoding="utf-8"))}
    missing = sorted(name for name in names if not (CHECKOUT / name).exists())
    assert not missing


def test_links_have_targets(document: Path) -> None:
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert not anchor or anchor in set(_anchors(target)), link


def test_documents_that_messages_name_exist() -> None:
    named = 0
    for package in ("artefacts", "configs", "launch", "pipeline", "tokenizer", "training"):
        for path in (CHECKOUT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                for match in _DOCUMENT.finditer(text):
                    page = CHECKOUT / match[0].partition(",")[0]
                    assert page.exists(), f"{path}: {match[0]}"
                    heading = rf"^#+ {re.escape(match[1] or '')}"
                    assert re.search(heading, page.read_text(encoding="utf-8"), re.MULTILINE), f"{path}: {match[0]}"
                    named += 1
    assert named


def _anchors(page: Path) -> Iterator[str]:
    """Anchors of the headings, by GitHub's rules."""
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        kept = "".join(char for char in heading.lower() if char.isalnum() or char in " -_")
        yield kept.replace(" ", "-")


def test_recipe_keys_exist(document: Path) -> None:
    known = {*Recipe.keys(), *(key.name for key in keys()), *(page.name for page in pages())}
    named = set(_KEY.findall(document.read_text(encoding="utf-8")))
    assert not sorted(named - known - {"tokenizer.json", "tokenizer.model"})


def test_readme_and_recipes_page_agree() -> None:
    """Every row of the README's table of recipes is a row of docs/recipes.md, which lists every recipe once."""
    page = (CHECKOUT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    table = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("| Recipe in `configs/` ")[2]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows and set(rows) <= set(page)
    listed = sorted(line.split("`")[1] for line in page if line.startswith("| `"))
    assert listed == sorted(path.stem for path in (CHECKOUT / "configs").rglob("*.yaml"))


def test_recipes_in_the_documents_load(document: Path, tmp_path: Path) -> None:
    """A block that begins with `run:` is a recipe. A later block with another section is added to it."""
    recipe = ""
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)):
        recipe = block if block.startswith("run:") else recipe + block if recipe else ""
        if recipe:
            path = tmp_path / f"{number}.yaml"
            path.write_text(recipe, encoding="utf-8")
            load_recipe(path)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_targets_exist() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    help_text = subprocess.run(
        ["make"], cwd=CHECKOUT, env=environment, capture_output=True, encoding="utf-8", check=True
    ).stdout
    targets = set(_listed(help_text))
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(  .*?)^```", readme, re.MULTILINE | re.DOTALL)
    listed = [target for block in blocks for target in _listed(block)]
    assert len(listed) >= 10 and not sorted(set(listed) - targets)
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for words in re.findall(r"(?:^|[`$] ?)make (?:-n )?((?:[a-z-]+ )*[a-z-]+)(?= |`|$)", text, re.MULTILINE):
            unknown = [word for word in words.split() if word not in targets]
            assert not unknown or words.split()[0] in _PROSE, f"{document.name}: make {words}"


def _listed(block: str) -> list[str]:
    """The targets in a list of targets: the first word of each indented line."""
    return re.findall(r"^  ([a-z-]+) ", block, re.MULTILINE)
