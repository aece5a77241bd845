"""The torchrun command line with torchruns that know an option and that do not."""

from pathlib import Path

import pytest

from configs.load import load_recipe
from launch import torchrun

RECIPE = Path(__file__).parents[2] / "configs/demo.yaml"


@pytest.mark.parametrize("seconds", [20, 60])
@pytest.mark.parametrize("known", [True, False])
def test_the_time_to_save_in_reaches_torchrun_where_it_can(
    seconds: int, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "torch/distributed/run.py"
    source.parent.mkdir(parents=True)
    (tmp_path / "torch/__init__.py").touch()
    source.write_text('parser.add_argument("--shutdown-timeout")' if known else "")
    monkeypatch.setattr(torchrun, "find_spec", lambda name: Spec([str(tmp_path / name)]))
    recipe = load_recipe(RECIPE, [f"launch.grace_seconds={seconds}"])
    argv = torchrun.torchrun(recipe, "pretrain", "r.yaml", []).argv
    assert (f"--shutdown-timeout={seconds}" in argv) == known
    assert any(part.startswith("--shutdown") for part in argv) == known
    said = capsys.readouterr().err
    assert (f"launch.grace_seconds ({seconds})" in said) == (not known and seconds > 30)


class Spec:
    def __init__(self, folders: list[str]) -> None:
        self.submodule_search_locations = folders
