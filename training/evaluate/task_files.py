"""The files that ``evaluate.tasks`` names, without importing lm-eval."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from artefacts import fingerprint
from artefacts.errors import RequestError
from configs.schema.evaluate import EvaluateSection
from training.evaluate.battery.build import NAME

_KEY = "evaluate.tasks"
_SUFFIXES = (".yaml", ".yml")
#: Files in ``evaluate.task_path`` that may change a task's results.
_READ = (*_SUFFIXES, ".py", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")


def is_path(task: str) -> bool:
    """Return whether an entry of ``evaluate.tasks`` is a file rather than a name."""
    return task.endswith(_SUFFIXES)


def check(section: EvaluateSection) -> dict[str, str]:
    """Check that lm-eval and the local files of the tasks exist. Returns the fingerprint of every file, by name.

    Raises:
        RequestError: lm-eval is not installed, or a file is missing or is not a task.
    """
    if not section.tasks:
        return {}
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError(
            f"{_KEY} needs the package lm-eval: install it with "
            ".venv/bin/python -m pip install -c requirements-dev.lock lm-eval"
        )
    files = {Path(task).name: Path(task) for task in section.tasks if is_path(task)}
    for path in list(files.values()):
        files |= {one.name: one for one in _named_files(path)}
    if section.task_path:
        folder = Path(section.task_path)
        if not folder.is_dir():
            raise RequestError(f"evaluate.task_path={folder}: there is no such folder")
        files |= {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix in _READ and path.is_file()
        }
    return {f"task file {name}": fingerprint.of_file(path) for name, path in sorted(files.items())}


def folders(section: EvaluateSection, battery: Path) -> list[Path]:
    """Return the folders whose task files lm-eval should index. ``battery`` is the folder with the battery's files."""
    paths = [battery] if NAME in section.tasks or any(task.startswith(f"{NAME}_") for task in section.tasks) else []
    return [*paths, *([Path(section.task_path)] if section.task_path else [])]


class _Loader(yaml.SafeLoader):
    """Reads a task file without running the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def _named_files(path: Path) -> Iterator[Path]:
    """Yield the files that a task file includes and the local data files that it reads.

    Raises:
        RequestError: a file is missing, or the task file cannot be parsed.
    """
    if not path.is_file():
        raise RequestError(f"{_KEY}: {path}: there is no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{_KEY}: {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{_KEY}: {path} is not a task file: it has no keys such as task and output_type")
    includes = content.get("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        included = path.parent / str(include)
        yield from _named_files(included)
        yield included
    arguments = content.get("dataset_kwargs")
    for name in _texts(arguments.get("data_files") if isinstance(arguments, dict) else None):
        if "://" not in name and not any(letter in name for letter in "*?["):
            if not Path(name).is_file():
                raise RequestError(f"{_KEY}: {path} reads {name}, and there is no such file")
            yield Path(name)
    modules = {
        value.split(".")[0] for value in _texts(content) if "." in value and value.replace(".", "").isidentifier()
    }
    yield from (path.parent / f"{name}.py" for name in sorted(modules) if (path.parent / f"{name}.py").is_file())


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
