from pathlib import Path

from artefacts import repair


def test_a_command_is_the_one_to_type(monkeypatch):
    line = [
        "pipeline",
        "tokenize",
        "--recipe",
        "my recipes/a.yaml",
        "run.root=runs x",
        "data.sources.my-books.weight=2",
    ]
    monkeypatch.setattr("sys.argv", line)
    given = "--recipe 'my recipes/a.yaml' 'run.root=runs x' data.sources.my-books.weight=2"
    assert repair.with_recipe("python -m pipeline dedup") == f"python -m pipeline dedup {given}"
    cure = repair.cure("tokens", Path("runs x/tokens"))
    assert cure == f"repair: rm -r 'runs x/tokens' && python -m pipeline tokenize {given}"
    monkeypatch.setattr("sys.argv", ["pipeline", "--recipe=b.yaml", "stats"])
    assert repair.with_recipe("python -m pipeline run") == "python -m pipeline run --recipe b.yaml"


def test_without_a_recipe_its_place_is_shown(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "-q"])
    assert repair.with_recipe("python -m pipeline run") == "python -m pipeline run --recipe PATH"
