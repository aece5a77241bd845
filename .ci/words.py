"""Find words that `words.txt` advises against, in names, comments, docstrings, messages and documents.

    python .ci/words.py [FILE OR FOLDER ...]    default: every file that git tracks

The script prints one line per match, and exits with status 1 if there are any. Lines that contain `words: ok` are
skipped.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")
#: Prefixes of paths that are not checked: generated files, the word list itself, and its test.
SKIPPED = ("requirements", ".ci/words", "LICENSE", "tests/test_words.py")
TEXTS = {".md", ".yaml", ".yml", ".toml", ".c", ".css", ""}


@dataclass
class Words:
    """The sections of `words.txt`. Each pairs words or patterns to avoid with advice on what to write instead."""

    parts: dict[tuple[str, ...], str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    texts: list[tuple[re.Pattern[str], str]] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """Check the files, print the matches, and return the exit status."""
    words = read_words()
    hits = 0
    for path in tracked(arguments):
        source = path.read_text(encoding="utf-8", errors="replace")
        lines = source.splitlines()
        places = [*in_text(path, source, words), *(in_names(source, words) if path.suffix == ".py" else ())]
        for line, word, advice in sorted(places):
            if "words: ok" not in lines[line - 1]:
                print(f"{path}:{line}: {word}: {advice}")
                hits += 1
    return 1 if hits else 0


def read_words() -> Words:
    """Read `words.txt`."""
    words = Words()
    section = ""
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            word, advice = line.split(" = ", 1)
            if section == "parts of names":
                words.parts[split(word)] = advice
            elif section == "names":
                words.names[word] = advice
            else:
                words.texts.append((re.compile(word, re.IGNORECASE), advice))
    return words


def split(name: str) -> tuple[str, ...]:
    """Split a name into lowercase words: `_MADE_FROM` and `MadeFrom` both give ("made", "from")."""
    return tuple(part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name))


def tracked(arguments: list[str]) -> Iterator[Path]:
    """Yield the tracked text files to check. If ``arguments`` has paths, yield only the files under them."""
    done = subprocess.run(["git", "ls-files", "--", *arguments], capture_output=True, text=True, check=True)
    for name in done.stdout.splitlines():
        path = Path(name)
        if not name.startswith(SKIPPED) and path.suffix in {".py", *TEXTS} and path.is_file():
            yield path


def in_text(path: Path, source: str, words: Words) -> Iterator[tuple[int, str, str]]:
    """Yield (line, matched text, advice) for each match in a text file, or in a Python file's comments and strings."""
    if path.suffix != ".py":
        pieces = [(1, source)]
    else:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        pieces = [(token.start[0], token.string) for token in tokens if token.type in kinds]
    for first, text in pieces:
        for pattern, advice in words.texts:
            for match in pattern.finditer(text):
                yield first + text.count("\n", 0, match.start()), match[0], advice


def in_names(source: str, words: Words) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name, advice) for each name that a Python file defines and for which `advice_on` returns advice."""
    for node in ast.walk(ast.parse(source)):
        for name in bound(node):
            if advice := advice_on(name, words):
                yield node.lineno, name, advice


def bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a syntax-tree node binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            yield name


def advice_on(name: str, words: Words) -> str | None:
    """Return the advice on a name, or None. Checks the full name, its parts, and the parts joined by spaces."""
    if name.lstrip("_") in words.names:
        return words.names[name.lstrip("_")]
    parts = split(name)
    for listed, advice in words.parts.items():
        if any(parts[start : start + len(listed)] == listed for start in range(len(parts))):
            return advice
    return next((advice for pattern, advice in words.texts if pattern.search(" ".join(parts))), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
