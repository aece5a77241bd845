"""The documentation source: parsed without importing, restricted to named packages, cached."""

import pytest

from artefacts.errors import RequestError
from pipeline.reports.preview import preview
from pipeline.sources import pydocs, pydocs_parse
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.pydocs import PydocsSource
from pipeline.sources.registry import open_sources
from tests.support.pipeline.corpora import recipe

CODE = '''
"""A module.

More."""
raise SystemExit("never imported")

def plain(a, b: int = 3, *rest, key="x", **others) -> str:
    """Do it.

    Such as:
        Indented.
    """
    def inner():
        """Not public."""

def bare(): pass

class Thing(Base, metaclass=M):
    """A thing."""
    async def method(self, /, x):
        """Move."""
    class Inner:
        """Inside."""

if True:
    def twice(): """First way of two."""
else:
    def twice(): """Second way."""
try:
    pass
except ImportError:
    def fallback(): """Falls back."""
'''


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return PydocsSource(tmp_path_factory.mktemp("cache"), ("json", "posixpath", "topics"))


def _parsed(tmp_path, code):
    (tmp_path / "m.py").write_text(code)
    return pydocs_parse.parse_files([("pkg.m", str(tmp_path / "m.py"))])


def test_documents_of_a_module(tmp_path):
    actual, faults = _parsed(tmp_path, CODE)
    assert not faults
    by_id = {document.id: document for document in actual}
    assert by_id["pydocs:pkg.m"].text == "pkg.m\n\nA module.\n\nMore."
    assert by_id["pydocs:pkg.m.plain"].text == (
        "pkg.m.plain(a, b: int=3, *rest, key='x', **others) -> str\n\nDo it.\n\nSuch as:\n    Indented."
    )
    assert by_id["pydocs:pkg.m.Thing"].text == "class pkg.m.Thing(Base)\n\nA thing."
    assert by_id["pydocs:pkg.m.Thing.method"].text.startswith("pkg.m.Thing.method(self, /, x)\n")
    assert {"pydocs:pkg.m.Thing.Inner", "pydocs:pkg.m.fallback"} <= by_id.keys()
    assert "pydocs:pkg.m.bare" not in by_id and "pydocs:pkg.m.plain.inner" not in by_id
    assert [d.kind for d in actual if d.id == "pydocs:pkg.m.twice"] == ["function", "function"]


def test_long_signatures_are_shortened(tmp_path):
    arguments = ", ".join(f"argument_{i}: dict[str, list[int]] = None" for i in range(12))
    actual, _ = _parsed(tmp_path, f'def f(a, *, {arguments}, **kw):\n    """Long."""\n')
    first = actual[0].text.split("\n")[0]
    assert first.startswith("pkg.m.f(a, *, argument_0, argument_1,") and first.endswith("**kw)") and len(first) < 300


def test_a_file_that_does_not_parse_is_counted(tmp_path):
    actual, faults = _parsed(tmp_path, '"""Python 2."""\nprint "x"\n')
    assert not actual and "SyntaxError" in faults[0][1]


def test_named_packages_only(source):
    bad = BadInputs()
    documents_read = [document for part in source.parts(1) for document in source.read(part, bad)]
    names = {document.id.removeprefix("pydocs:").split(".")[0] for document in documents_read}
    assert names == {"json", "os", "topics"}
    assert source.size(1) == sum(part.size for part in source.parts(1)) > 0
    ids = [document.id for document in documents_read]
    assert len(ids) == len(set(ids)) and {"pydocs:json.dumps", "pydocs:os.path.join"} <= set(ids)
    assert {document.kind for document in documents_read} == {"topic", "module", "class", "function"}
    assert bad.good > 3 and not bad.reasons
    assert "numpy" in source.details()["environment"]["packages"]


def test_the_cache_is_used_and_the_same_bytes_with_more_processes(source, tmp_path):
    source.parts(1)
    before = source.path.stat().st_mtime_ns
    source.parts(1)
    assert source.path.stat().st_mtime_ns == before
    other = PydocsSource(tmp_path, source.packages)
    other.parts(2)
    assert other.path.name == source.path.name and other.path.read_bytes() == source.path.read_bytes()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_cache_is_rebuilt(tmp_path, capsys, damage):
    source = PydocsSource(tmp_path, ("json",))
    source.parts(1)
    content = source.path.read_bytes()
    damage(source.path)
    source.parts(1)
    assert source.path.read_bytes() == content and "damaged cache" in capsys.readouterr().out


def test_an_unknown_package_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no source files of nonesuch are installed"):
        PydocsSource(tmp_path, ("nonesuch",)).parts(1)


def test_a_preview_parses_no_more_than_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, "_TASK_BYTES", 1 << 16)
    run_recipe = recipe(tmp_path, "data.source.packages=[json, email, asyncio, xml]")
    (source,) = open_sources(run_recipe).values()
    preview(run_recipe, 5)
    assert not list(tmp_path.rglob("*.parquet"))
    documents_read = list(source.first(5, tmp_path / "short").documents(1))
    every = list(source.documents(1))
    assert 5 <= len(documents_read) < len(every) / 2 and documents_read == every[: len(documents_read)]
    assert source.first(5, tmp_path / "other") is source
