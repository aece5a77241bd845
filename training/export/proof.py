"""Verifies an exported folder: reads the weights back, and compares logits with transformers."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from training.export.directory import weights_in
from training.export.weights import load_weights

#: Number of prompts to compare logits on, and their length in tokens.
_PROMPTS, _LENGTH = 3, 32
#: Largest allowed difference between logits in fp32, relative to the largest logit if that is above 1.
TOLERANCE = 1e-4


@torch.no_grad()
def require_same_weights(folder: Path, model: Any, fresh: Any) -> None:
    """Load a folder into ``fresh`` and compare it with ``model``, whose weights are rounded to the folder's dtype.

    Raises:
        RuntimeError: the weights differ.
    """
    load_weights(fresh, weights_in(folder))
    wanted = dict([*model.named_parameters(), *model.named_buffers()])
    for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
        if not torch.equal(tensor, wanted[name]):
            raise RuntimeError(f"{folder}: {name} differs after writing and reading it: nothing is exported")


@torch.no_grad()
def difference_to_transformers(folder: Path, model: Any, vocabulary: int, adapter: Path | None = None) -> float | None:
    """Return the largest difference between the logits of our model and of transformers' model, both in fp32.

    transformers loads its model from the folder and, given an adapter's folder, peft adds the adapter. The difference
    is relative to the largest logit if that is above 1. Returns None if a library is not installed.

    Raises:
        RuntimeError: the difference is above ``TOLERANCE``.
    """
    if any(importlib.util.find_spec(name) is None for name in ("transformers", *(("peft",) if adapter else ()))):
        return None
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    if adapter:
        from peft import PeftModel

        theirs = PeftModel.from_pretrained(theirs, str(adapter)).eval()
        _require_same_adapter(adapter, theirs)
    length = min(_LENGTH, model.section.max_seq_len or _LENGTH)
    ids = torch.randint(0, vocabulary, (_PROMPTS, length), generator=torch.Generator().manual_seed(0))
    ours, their = model.float()(ids), theirs(ids, use_cache=False).logits
    difference = float((ours - their).abs().max() / ours.abs().max().clamp_min(1.0))
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{adapter or folder}: logits of {'peft' if adapter else 'transformers'} differ by {difference:.1e}, above "
            f"{TOLERANCE:g}: nothing is exported"
        )
    return difference


def _require_same_adapter(adapter: Path, theirs: Any) -> None:
    """Check that peft read every tensor of an adapter: it does not report tensors that it leaves out.

    Raises:
        RuntimeError: the tensors differ.
    """
    written = {name.removesuffix(".weight"): tensor for name, tensor in weights_in(adapter)}
    loaded = {
        name.removesuffix(".weight").removesuffix(".default"): tensor
        for name, tensor in theirs.named_parameters()
        if ".lora_" in name
    }
    for name in sorted({*written, *loaded}):
        if name not in written or name not in loaded or not torch.equal(written[name], loaded[name]):
            raise RuntimeError(f"{adapter}: peft reads {name} differently: nothing is exported")
