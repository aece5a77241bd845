"""Find words that `words.txt` advises against, in names, comments, docstrings, messages and documents.

    python .ci/words.py [FILE OR FOLDER ...]    default: every file that git tracks

Prints one line per match, and exits with status 1 if there are any. Lines that contain `words: ok` are skipped.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")
#: Prefixes of paths that are not checked: generated files, the word list itself, and its test.
SKIPPED = ("requirements", ".ci/words", "LICENSE", "tests/test_words.py")
TEXTS = {".md", ".yaml", ".yml", ".toml", ".c", ".css", ""}


def main(arguments: list[str]) -> int:
    """Check the files, print the matches, and return the exit status."""
    names, texts = read_words()
    hits = 0
    for path in tracked(arguments):
        source = path.read_text(encoding="utf-8", errors="replace")
        lines = source.splitlines()
        places = [*in_text(path, source, texts), *(in_names(source, names) if path.suffix == ".py" else ())]
        for line, word, advice in sorted(places):
            if "words: ok" not in lines[line - 1]:
                print(f"{path}:{line}: {word}: {advice}")
                hits += 1
    return 1 if hits else 0


def read_words() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Read `words.txt`. Returns a map from names to advice, and a list of text patterns with their advice."""
    names: dict[str, str] = {}
    texts: list[tuple[re.Pattern[str], str]] = []
    section = ""
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            word, advice = line.split(" = ", 1)
            if section == "names":
                names[word] = advice
            else:
                texts.append((re.compile(word, re.IGNORECASE), advice))
    return names, texts


def tracked(arguments: list[str]) -> Iterator[Path]:
    """Yield the files to check: those that git tracks in these places, or everywhere if there are none."""
    done = subprocess.run(["git", "ls-files", "--", *arguments], capture_output=True, text=True, check=True)
    for name in done.stdout.splitlines():
        path = Path(name)
        if not name.startswith(SKIPPED) and path.suffix in {".py", *TEXTS} and path.is_file():
            yield path


def in_text(path: Path, source: str, texts: list[tuple[re.Pattern[str], str]]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, matched text, advice) for each match in a document, or in a program's comments and strings."""
    if path.suffix != ".py":
        pieces = [(1, source)]
    else:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        pieces = [(token.start[0], token.string) for token in tokens if token.type in kinds]
    for first, text in pieces:
        for pattern, advice in texts:
            for match in pattern.finditer(text):
                yield first + text.count("\n", 0, match.start()), match[0], advice


def in_names(source: str, names: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name, advice) for each name on the list that a program defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            name = node.name
        else:
            continue
        if name in names or name.lstrip("_") in names:
            yield node.lineno, name, names.get(name) or names[name.lstrip("_")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
