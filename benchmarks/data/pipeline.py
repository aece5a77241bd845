"""The complete commands, from raw jsonl.zst to verified shards, against nanoGPT's method and datatrove.

Millrace reads, cleans (with the default rules), removes duplicates, measures the overlap of held-out documents,
tokenizes, writes shards with checksums, and verifies them. The peers only read and tokenize. All use a trained
vocabulary of 32,000 ids and two processes.
"""

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

from artefacts.checkout import CHECKOUT
from benchmarks import corpus
from benchmarks.paired import Ratio, compare, seconds

_PROCESSES = 2
_FILES = 8
_RECIPE = CHECKOUT / "configs" / "node.yaml"


def _command(*argv: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-m", *argv], cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stderr[-2000:]}")


class _Ours:
    def __init__(self, source: Path, root: Path) -> None:
        self._run = root / "ours" / "bench"
        self._line = [
            "--recipe", str(_RECIPE), f"run.root={root / 'ours'}", "run.name=bench", "data.source.kind=jsonl",
            f"data.source.path={source}", f"data.workers={_PROCESSES}",
        ]  # fmt: skip
        _command("pipeline", "run", *self._line)

    def __call__(self) -> float:
        for name in ("documents", "tokens"):
            shutil.rmtree(self._run / name)
        return sum(seconds(lambda verb=verb: _command("pipeline", verb, *self._line)) for verb in ("run", "verify"))


def _peer(module: str, source: Path, tokenizer: Path, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    line = (f"benchmarks.peers.{module}", str(source), str(tokenizer), str(out), str(_PROCESSES))
    return seconds(lambda: _command(*line))


def _peers_tokenizer(texts: list[str], path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def measure(quick: bool = False) -> list[Ratio]:
    root = corpus.CACHE / ("pipeline-quick" if quick else "pipeline")
    shutil.rmtree(root, ignore_errors=True)
    source = root / "source"
    texts = corpus.docstrings()
    more = corpus.sources(20_000_000 if quick else 150_000_000)
    size = corpus.jsonl(source, chain(texts, more), _FILES)
    tokenizer = root / "peer.json"
    _peers_tokenizer(texts[:20_000], tokenizer)
    ours = _Ours(source, root)
    rounds = 1 if quick else 3
    rows = []
    for name, module, target in (
        ("raw to verified shards, against datasets.map + tokenizers", "datasets_map", 4.0),
        ("raw to verified shards, against datatrove's reader + tokenizer", "datatrove_tokens", 3.0),
    ):

        def peer(module: str = module) -> float:
            return _peer(module, source, tokenizer, root / module)

        rows.append(compare(f"{name}, {size / 1e6:.0f} MB", ours, peer, size / 1e6, "MB/s", target, rounds))
    shutil.rmtree(root)
    return rows


if __name__ == "__main__":
    for ratio in measure("--quick" in sys.argv):
        print(ratio)
