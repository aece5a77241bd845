"""Read docstrings from Python source files with ``ast``. Nothing is imported."""

import ast
import gc
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

from pipeline.document import Document

#: Folders that contain no documentation for users.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "_vendored", "vendor", "_bundled", "benchmarks", "__pycache__", "lib2to3"}
    | {"site-packages", "dist-packages", "idlelib", "turtledemo", "pydoc_data"}
)
#: Files larger than this are usually tables or generated code.
_MOST_FILE_BYTES = 1_500_000
#: Signatures longer than this are shown without annotations and defaults.
_MOST_SIGNATURE_CHARS = 300
#: Module -> the public name under which it is documented.
_PUBLIC_NAMES = {"posixpath": "os.path"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parse_files(files: list[tuple[str, str]]) -> tuple[list[Document], list[tuple[str, str]]]:
    """Parse (module name, path) pairs. Returns the documents in order, and (path, error) for each failure."""
    documents: list[Document] = []
    faults: list[tuple[str, str]] = []
    # Syntax trees are large and acyclic, so garbage collection would only waste time.
    gc.disable()
    try:
        for module, path in files:
            try:
                documents.extend(_documents(module, Path(path)))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
                faults.append((path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
    finally:
        gc.enable()
    return documents, faults


def _documents(module: str, path: Path) -> Iterator[Document]:
    content = path.read_bytes()
    if len(content) > _MOST_FILE_BYTES or (b'"""' not in content and b"'''" not in content):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(content)
    name = _PUBLIC_NAMES.get(module, module)
    yield from _docstring(tree, f"{name}", name, "module")
    yield from _below(tree.body, name)


def _below(body: list[ast.stmt], prefix: str) -> Iterator[Document]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstring(node, f"{prefix}.{node.name}", None, "function")
        elif isinstance(node, ast.ClassDef):
            yield from _docstring(node, f"{prefix}.{node.name}", None, "class")
            yield from _below(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, (ast.If, ast.Try)):
            # Visit every branch of conditional definitions.
            yield from _below(node.body, prefix)
            yield from _below(node.orelse, prefix)
            for handler in getattr(node, "handlers", []):
                yield from _below(handler.body, prefix)


def _docstring(node: ast.Module | Definition, name: str, headline: str | None, kind: str) -> Iterator[Document]:
    doc = ast.get_docstring(node, clean=False)
    if doc and (cleaned := inspect.cleandoc(doc).strip()):
        assert headline or not isinstance(node, ast.Module)
        first = headline or signature(name, node)  # type: ignore[arg-type]
        yield Document(f"pydocs:{name}", f"{first}\n\n{cleaned}", "pydocs", kind)


def signature(name: str, node: Definition) -> str:
    """Return the signature line of a function (``name(arguments) -> result``) or class (``class name(bases)``)."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    line = f"{name}({ast.unparse(node.args)})"
    if node.returns is not None:
        line += f" -> {ast.unparse(node.returns)}"
    if len(line) > _MOST_SIGNATURE_CHARS:
        arguments = node.args
        names = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
        names += [f"*{arguments.vararg.arg}"] if arguments.vararg else ["*"] if arguments.kwonlyargs else []
        names += [a.arg for a in arguments.kwonlyargs]
        names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
        line = f"{name}({', '.join(names)})"
    return line
