"""The torchrun command line, for versions of torchrun with and without an option."""

import socket
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_recipe
from launch import torchrun
from launch.preflight import _check_host_name
from tests.support.paths import DEMO_RECIPE

RECIPE = DEMO_RECIPE


@pytest.mark.parametrize("seconds", [20, 60])
@pytest.mark.parametrize("known", [True, False])
def test_torchrun_gets_the_grace_period_if_it_has_the_option(
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
    output = capsys.readouterr().err
    assert (f"launch.grace_seconds is {seconds}" in output) == (not known and seconds > 30)


@pytest.mark.parametrize("known", [True, False])
def test_a_host_that_cannot_resolve_its_own_name_uses_its_address(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **named: Any) -> Any:
        if host == socket.gethostname() and not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1" if host == socket.gethostname() else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for words, address in (
        ([], ["--local-addr=127.0.0.1"]),
        (["launch.nodes=2", "launch.rendezvous=127.0.0.1:29500"], [] if known else ["--local-addr=127.0.0.1"]),
        (["launch.nodes=2", f"launch.rendezvous={socket.gethostname()}:29500"], []),
    ):
        recipe = load_recipe(RECIPE, ["launch.kind=torchrun", "launch.processes=1", *words])
        argv = torchrun.torchrun(recipe, "pretrain", "r.yaml", []).argv
        assert [part for part in argv if part.startswith("--local-addr")] == address
        warned = any(socket.gethostname() in line for line in _check_host_name(recipe))
        assert warned == (not known and recipe.launch.nodes == 2), "one node needs no name"


class Spec:
    def __init__(self, folders: list[str]) -> None:
        self.submodule_search_locations = folders
