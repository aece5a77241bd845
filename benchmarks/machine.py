"""The machine that a benchmark ran on."""

import os
import platform
from importlib import metadata, util
from pathlib import Path

_VERSIONS = (
    "numpy",
    "pyarrow",
    "sentencepiece",
    "tokenizers",
    "tiktoken",
    "datasets",
    "datatrove",
    "spacy",
    "torch",
    "transformers",
    "lm-eval",
    "triton",
    "liger-kernel",
)


def machine() -> str:
    """Describe the GPU, processor, cores and versions in one line."""
    import torch

    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    installed = [name for name in _VERSIONS if util.find_spec(name.replace("-", "_"))]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in installed)
    cores = len(os.sched_getaffinity(0))
    processor = names[0] if names else platform.processor()
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{card}{processor}, {cores} cores, Python {platform.python_version()}; {versions}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
