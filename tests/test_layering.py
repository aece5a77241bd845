"""Imports run one way, models know no ranks, and what must answer at once imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
#: What each package may import of ours, besides itself.
MAY_IMPORT = {
    "configs": set(),
    "artefacts": {"configs"},
    "tokenizer": {"configs", "artefacts"},
    "pipeline": {"configs", "artefacts", "tokenizer"},
    "training": {"configs", "artefacts", "tokenizer", "pipeline"},
    "launch": {"configs", "artefacts", "training.estimate"},
}
#: Within training: what a room must not know.
MUST_NOT_IMPORT = {
    "training/layers": ("training.models", "training.engine", "training.data", "training.checkpoint"),
    "training/models": ("training.engine", "training.data", "training.checkpoint", "torch.distributed"),
    "training/data": ("training.models", "training.layers", "training.engine", "training.checkpoint"),
    "training/engine": ("training.models", "training.layers", "training.checkpoint"),
    "training/checkpoint": ("training.models", "training.layers", "training.data"),
    "training/report": ("training.models", "training.layers", "training.data", "training.engine", "torch"),
    "training/estimate": ("training.models", "training.layers", "training.engine", "torch"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = list((CHECKOUT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            if name.split(".")[0] in MAY_IMPORT and not starts_with(name, package):
                assert any(starts_with(name, allowed) for allowed in MAY_IMPORT[package]), f"{path} imports {name}"


@pytest.mark.parametrize("room", MUST_NOT_IMPORT)
def test_rooms_of_training_keep_apart(room: str) -> None:
    files = list((CHECKOUT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for forbidden in MUST_NOT_IMPORT[room]:
                assert not starts_with(name, forbidden), f"{path} imports {name}"


def test_models_read_no_environment() -> None:
    for room in ("layers", "models"):
        for path in (CHECKOUT / "training" / room).rglob("*.py"):
            assert not any(starts_with(name, "os") for name in imports(path)), path


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
