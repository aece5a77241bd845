"""GPT-2 against nanoGPT's own model file and transformers: training steps and generation with the same weights.

    python -m benchmarks.model.dense [--quick] [--nanogpt FILE]

You need to download nanoGPT's ``model.py`` yourself. Name it with ``--nanogpt`` or the environment variable NANOGPT.
Without it, nanoGPT's rows are left out. Steps are forward and backward passes in eager mode, all with the allocator
settings of ``python -m launch``. With dropout, each model drops different values, so losses are not compared.
Generation is greedy, and the entire call is timed. nanoGPT reruns the full context for each token, whereas ours has a
KV cache.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from benchmarks.model.step import DTYPES, our_step, their_step
from benchmarks.paired import Ratio, compare, seconds
from configs.schema.models.gpt import GptSection
from training.export.gpt2 import released_config
from training.export.weights import released_weights
from training.inference.generate import Limits, generate
from training.inference.sampling import Sampling
from training.models.registry import build_model, init_weights

#: nanoGPT's character-level Shakespeare model and its GPT-2, each with its vocabulary size.
SIZES = {
    "10M": (GptSection(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, max_position_embeddings=256), 65),
    "124M": (GptSection(hidden_size=768, num_hidden_layers=12, num_attention_heads=12), 50304),
}
_BATCH = {"10M": (8, 256), "124M": (2, 256)}
_NEW = 256


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure every size and precision. ``quick`` uses only the smaller size and fewer rounds."""
    rounds = 3 if quick else 9
    _keep_memory()
    if not _nanogpt():
        print("nanoGPT's rows are left out: name its model.py by --nanogpt or NANOGPT", file=sys.stderr)
    for size in list(SIZES)[: 1 if quick else None]:
        for precision, dtype in DTYPES.items():
            if _nanogpt():
                yield _against_nanogpt(size, precision, dtype, 0.0, rounds)
                yield _against_nanogpt(size, precision, dtype, 0.2, rounds)
            yield _against_transformers(size, precision, dtype, rounds)
        if _nanogpt():
            yield from (_generation(size, name, dtype, 1 if size == "124M" else 3) for name, dtype in DTYPES.items())


def _keep_memory() -> None:
    """Make glibc's allocator keep freed blocks, as ``launch/plan.py`` does. Do nothing with other C libraries."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        trim_threshold, mmap_max = -1, -4
        set_option(trim_threshold, 2**31 - 1)
        set_option(mmap_max, 0)


def _against_nanogpt(size: str, precision: str, dtype: torch.dtype, dropout: float, rounds: int) -> Ratio:
    model, peer = _pair(size, dtype, dropout)
    batch = _tokens(size)
    ours = our_step(model, *batch)

    def their() -> float:
        peer.zero_grad()
        _, loss = peer(*batch)
        loss.backward()
        return float(loss.detach())

    peer.train()
    if not dropout:
        _require_close(ours(), their(), dtype)
    dropped = f", dropout {dropout}" if dropout else ""
    return _compared(f"training step, GPT {size} {precision}{dropped}, against nanoGPT", size, ours, their, 1.0, rounds)


def _against_transformers(size: str, precision: str, dtype: torch.dtype, rounds: int) -> Ratio:
    """Compare with transformers, with biases and the released GPT-2's activation. It uses PyTorch's fused attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    section, vocab = SIZES[size]
    model = _ours(section.model_copy(update={"activation": "gelu_new"}), vocab)
    config = GPT2Config(**released_config(model.section, vocab), attn_implementation="sdpa")
    peer = GPT2LMHeadModel(config)
    peer.load_state_dict(dict(released_weights(model)), strict=False)
    batch = _tokens(size)
    ours, their = our_step(model.to(dtype), *batch), their_step(peer.to(dtype), *batch)
    _require_close(ours(), their(), dtype)
    return _compared(f"training step, GPT {size} {precision}, against transformers", size, ours, their, 1.1, rounds)


def _generation(size: str, precision: str, dtype: torch.dtype, rounds: int) -> Ratio:
    """Compare greedy generation after a single token. In nanoGPT, greedy is top-k sampling with k = 1."""
    model, peer = _pair(size, dtype, 0.0)
    model.eval(), peer.eval()
    limits = Limits(_NEW, SIZES[size][0].max_position_embeddings, SIZES[size][1])

    def ours() -> list[int]:
        return list(generate(model, [1], limits, Sampling(temperature=0), seed=0))

    def their() -> list[int]:
        generated: list[int] = peer.generate(torch.tensor([[1]]), _NEW, top_k=1)[0, 1:].tolist()
        return generated

    if dtype == torch.float32 and rounds > 1:
        assert ours() == their(), "other tokens than nanoGPT's"
    title = f"{_NEW} new tokens, GPT {size} {precision}, against nanoGPT without a cache"
    return compare(title, lambda: seconds(ours), lambda: seconds(their), _NEW, "tokens/s", 5.0, rounds)


def _compared(
    title: str, size: str, ours: Callable[[], float], their: Callable[[], float], target: float, rounds: int
) -> Ratio:
    batch, length = _BATCH[size]
    return compare(title, lambda: seconds(ours), lambda: seconds(their), batch * length, "tokens/s", target, rounds)


def _require_close(ours: float, their: float, dtype: torch.dtype) -> None:
    difference = abs(ours - their) / abs(their)
    assert difference < (1e-5 if dtype == torch.float32 else 2e-2), f"losses differ by {difference}"


def _ours(section: GptSection, vocab: int) -> Any:
    model = build_model(section, vocab)
    init_weights(model, 0)
    return model


def _pair(size: str, dtype: torch.dtype, dropout: float) -> tuple[Any, Any]:
    """Return our model, without biases, and nanoGPT's, with the same weights."""
    section, vocab = SIZES[size]
    section = section.model_copy(update={"bias": False, "dropout": dropout})
    model, file = _ours(section, vocab), _nanogpt()
    config = file.GPTConfig(
        block_size=section.max_position_embeddings,
        vocab_size=vocab,
        n_layer=section.num_hidden_layers,
        n_head=section.num_attention_heads,
        n_embd=section.hidden_size,
        dropout=dropout,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # nanoGPT prints its number of parameters
        peer = file.GPT(config)
    released = dict(released_weights(model))
    peer_state = peer.state_dict()
    # nanoGPT's matrices have our orientation, but the released ones are transposed.
    turned = {name: released[name] for name in peer_state if name in released}
    turned = {
        name: value if value.shape == peer_state[name].shape and "c_" not in name else value.t()
        for name, value in turned.items()
    }
    peer.load_state_dict({**turned, "lm_head.weight": released["transformer.wte.weight"]})
    return model.to(dtype), peer.to(dtype)


def _tokens(size: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length = _BATCH[size]
    tokens = torch.randint(0, SIZES[size][1], (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


@cache
def _nanogpt() -> Any:
    """Load nanoGPT's model file as a module. None if NANOGPT names no file."""
    path = os.environ.get("NANOGPT")
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None, f"{path} is no Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks up its own module there
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller size only, fewer rounds")
    parser.add_argument("--nanogpt", metavar="FILE", help="nanoGPT's model.py; default: the environment's NANOGPT")
    arguments = parser.parse_args()
    if arguments.nanogpt:
        os.environ["NANOGPT"] = arguments.nanogpt
    for ratio in measure(arguments.quick):
        print(ratio, flush=True)


if __name__ == "__main__":
    main()
