"""Imports run downward, models know nothing of ranks, and quick commands import no torch."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import CHECKOUT

#: The layers from the bottom up: a module may import modules of its own layer and of the layers before it in this list.
#: A folder stands for all modules in it, except those that another layer names more exactly.
LAYERS = (
    ("artefacts",),
    ("artefacts.pages",),
    ("configs.schema",),
    ("configs", "configs.checks"),
    ("tokenizer",),
    ("pipeline.document", "pipeline.parallel", "pipeline.ngrams"),
    ("pipeline.sources",),
    ("pipeline.cleaning",),
    ("pipeline.dedup",),
    ("pipeline.documents",),
    ("pipeline.tokens",),
    ("pipeline.examples",),
    ("pipeline.reports",),
    ("pipeline.__main__",),
    ("training.runs",),
    (
        "training.adapter_names",
        "training.block_sizes",
        "training.layers.cross_entropy",
        "training.layers.masks",
        "training.layers.packed_documents",
    ),
    ("training.layers.cpu",),
    ("training.layers",),
    ("training.models",),
    ("training.estimate",),
    ("training.distributed",),
    ("training.data",),
    ("training.engine",),
    ("training.optim",),
    ("training.checkpoint",),
    ("training.trainer",),
    ("training.trainer.callbacks",),
    ("training.objective",),
    ("training.preference",),
    ("training.export",),
    ("training.model_loading",),
    ("training.inference",),
    ("training.evaluate", "training.compare", "training.report"),
    ("training.job",),
    ("training.commands",),
    ("training.__main__",),
    ("launch",),
    ("launch.slurm",),
    ("launch.__main__",),
)
#: What layers and models know nothing of.
_OUTSIDE_MODELS = (
    "training.engine",
    "training.data",
    "training.checkpoint",
    "training.distributed",
    "torch.distributed",
    "deepspeed",
)
#: What a package must never reach, through any number of imports.
NEVER_REACHES = {
    "artefacts": ("torch",),
    "configs": ("torch",),
    "tokenizer": ("torch",),
    "pipeline": ("torch",),
    "training.layers": _OUTSIDE_MODELS,
    "training.models": _OUTSIDE_MODELS,
    "training.data": ("training.models", "training.layers", "training.engine", "training.checkpoint", "deepspeed"),
    "training.engine": ("training.models", "training.layers", "training.data", "training.checkpoint"),
    "training.optim": ("training.models", "training.data", "training.checkpoint"),
    "training.objective": ("training.models", "training.engine", "deepspeed"),
    "training.preference": ("training.models", "training.engine", "training.trainer", "deepspeed"),
    "training.trainer": ("training.models", "training.layers"),
    "training.checkpoint": ("training.models", "training.layers", "training.data"),
    "training.model_loading": ("training.trainer",),
    "training.inference": ("training.trainer",),
    "training.evaluate": ("training.trainer",),
    "training.export": ("training.trainer",),
    "training.compare": ("training.trainer",),
    "training.runs": ("torch",),
    "training.adapter_names": ("torch",),
    "training.block_sizes": ("torch",),
    "training.report": ("torch",),
    "training.estimate": ("torch",),
    "launch": ("torch",),
}
#: All that a package may reach of ``training``, apart from itself.
REACHES_OF_TRAINING: dict[str, tuple[str, ...]] = {
    "launch": ("training.estimate", "training.runs", "training.block_sizes", "training.adapter_names"),
    "training.estimate": ("training.block_sizes", "training.adapter_names"),
    "training.report": (),
    "training.runs": (),
    "training.adapter_names": (),
    "training.block_sizes": (),
    "training.distributed": (),
}
PACKAGES = ("artefacts", "configs", "tokenizer", "pipeline", "training", "launch")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module that ships."""
    files = {}
    for package in PACKAGES:
        for path in (CHECKOUT / package).rglob("*.py"):
            name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = path
    return files


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports, at its head or within functions: ours as modules, others in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(str(node.module) if name not in modules() and node.module in modules() else name)
    return frozenset(names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(module: str) -> int:
    """Number of the layer that names a module most exactly."""
    matching = [(len(name), number) for number, layer in enumerate(LAYERS) for name in layer if is_in(module, name)]
    assert matching, f"{module} is in no layer: add its folder to LAYERS"
    return max(matching)[1]


@cache
def runs(module: str) -> frozenset[str]:
    """All modules that Python runs for a module: its imports, and the ``__init__`` of every package around them."""
    names = {module, *imports(module)}
    for name in [*names]:
        while name := name.rpartition(".")[0]:
            names.add(name)
    return frozenset(names - {module})


@cache
def reached(module: str, with_packages: bool = False) -> dict[str, list[str]]:
    """Every module that a module imports, directly or not -> the chain of imports.

    With ``with_packages``, the chain also leads through the ``__init__`` of packages (see :func:`runs`).
    """
    follow = runs if with_packages else imports
    chains, waiting = {module: [module]}, [module]
    while waiting:
        name = waiting.pop()
        for other in follow(name) if name in modules() else ():
            if other not in chains:
                chains[other] = [*chains[name], other]
                waiting.append(other)
    return chains


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downward(package: str) -> None:
    for module in modules():
        if is_in(module, package) and "." in module:
            for name in imports(module) & modules().keys():
                assert layer_of(name) <= layer_of(module), f"{module} imports {name}, which is in a higher layer"


def test_no_circular_imports() -> None:
    for module in modules():
        for name in imports(module) & modules().keys() - {module}:
            assert module not in reached(name), f"{module} -> {' -> '.join(reached(name)[module])}"


@pytest.mark.parametrize("package", NEVER_REACHES)
def test_packages_never_import_what_they_must_not(package: str) -> None:
    inside = [module for module in modules() if is_in(module, package)]
    assert inside
    for module in inside:
        for name, chain in reached(module, with_packages=True).items():
            for forbidden in NEVER_REACHES[package]:
                assert not is_in(name, forbidden), f"import chain: {' -> '.join(chain)}"


@pytest.mark.parametrize("package", REACHES_OF_TRAINING)
def test_what_a_package_reaches_of_training(package: str) -> None:
    allowed = (package, *REACHES_OF_TRAINING[package])
    for module in (module for module in modules() if is_in(module, package)):
        for name, chain in reached(module, with_packages=True).items():
            if name.startswith("training."):
                assert any(is_in(name, other) for other in allowed), f"import chain: {' -> '.join(chain)}"


def test_cpu_code_is_used_through_its_package() -> None:
    """Only ``training/layers/cpu`` imports its modules; all others go through the package."""
    package = "training.layers.cpu"
    for module in modules():
        inside = [name for name in imports(module) if name.startswith(package + ".")]
        assert is_in(module, package) or not inside, f"{module} imports {inside}"
    offered = set(ast.literal_eval(_assigned(package, "__all__")))
    submodules = {name.removeprefix(package + ".") for name in modules() if name.startswith(package + ".")}
    for module in modules():
        if package in imports(module) and not is_in(module, package):
            # The layers use the modules that the package lists; the rest of training, only its functions.
            allowed = offered if is_in(module, "training.layers") else offered - submodules
            assert not _attributes_of_cpu(module) - allowed, module


def _assigned(module: str, name: str) -> ast.expr:
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value
    raise AssertionError(f"{module} does not assign {name}")


def _attributes_of_cpu(module: str) -> set[str]:
    """Names that a module reads from ``cpu``, imported with ``from training.layers import cpu``."""
    nodes = ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8")))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cpu"
    }


def test_models_read_no_environment() -> None:
    for module in modules():
        if is_in(module, "training.layers") or is_in(module, "training.models"):
            assert not any(is_in(name, "os") for name in imports(module)), module


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "local", "pretrain", "--recipe", "configs/demo.yaml", "--dry-run"],
        ["launch", "torchrun", "pretrain", "--recipe", "configs/demo.yaml", "--dry-run"],
        ["launch", "deepspeed", "pretrain", "--recipe", "configs/demo.yaml", "--dry-run"],
        ["launch", "slurm", "pretrain", "--recipe", "configs/demo.yaml", "--dry-run"],
        ["launch", "slurm", "data", "--recipe", "configs/demo.yaml", "--dry-run"],
        ["training", "estimate", "--recipe", "configs/demo.yaml"],
        ["launch", "--help"],
        ["pipeline", "--help"],
    ],
)
def test_quick_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"  # importing torch now fails
        f"sys.argv = {arguments!r}\n"
        f"runpy.run_module({arguments[0]!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_architecture_page_lists_every_folder() -> None:
    """The tables of docs/architecture.md name every folder of a package, and every module directly in training/."""
    page = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (CHECKOUT / package).glob("*/*.py")}):
            assert f"`{folder.name}/`" in page, folder.relative_to(CHECKOUT)
    for path in (CHECKOUT / "training").glob("[!_]*.py"):
        assert f"`{path.name}`" in page, path.name


def test_files_are_short_and_folders_small() -> None:
    tests = [*(CHECKOUT / "tests").rglob("*.py"), *(CHECKOUT / "benchmarks").rglob("*.py")]
    for path in [*modules().values(), *tests]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350, f"{path.relative_to(CHECKOUT)} has {lines} lines: split it by subject"
    for folder in {path.parent for path in modules().values()}:
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= 22, f"{folder.relative_to(CHECKOUT)} has {len(files)} files: give some a folder"
