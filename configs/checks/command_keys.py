"""The recipe keys that each command and each make target reads."""

from collections.abc import Sequence

_WHERE = ("run", "data.root")
_WEIGHTS = (*_WHERE, "model", "launch.device", "train.precision", "train.context_length")
_MAKE_DATA = ("run", "data", "tokenizer", "model", "train", "finetune", "launch")
_SHAPE = ("run", "tokenizer.vocab_size", "model", "train", "launch", "finetune")
_TRAIN = (*_SHAPE, "data.root", "data.sources.NAME.weight")
#: Command or make target -> the keys and sections that it reads. Commands that build data or weights also accept keys
#: that only other stages of the run read.
READS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("run", "ingest", "dedup", "clean", "tokenize", "pack", "examples"), _MAKE_DATA),
    **dict.fromkeys(("data", "tokenizer", "slurm-data", "train"), _MAKE_DATA),
    **dict.fromkeys(("pretrain", "finetune", "import", "slurm"), _TRAIN),
    "demo": (*_MAKE_DATA, "generate", "evaluate"),
    "verify": (*_WHERE, "data", "tokenizer"),
    **dict.fromkeys(("stats", "rejected", "report", "encode", "decode", "tokenizer inspect"), _WHERE),
    "generate": (*_WEIGHTS, "generate"),
    "temperature": (*_WEIGHTS, "generate"),
    "attention": (*_WEIGHTS, "generate"),
    "evaluate": (*_WEIGHTS, "generate", "evaluate"),
    "checkpoints": (*_WEIGHTS, "evaluate"),
    "export": (*_WEIGHTS, "generate.weights", "generate.stage", "export"),
    "compare": (*_SHAPE, "data", "tokenizer"),
    "estimate": _SHAPE,
    "inspect": (*_SHAPE, "data.root"),
}
#: Keys that launchers set when they start processes.
OF_LAUNCHERS = ("launch.kind", "launch.rendezvous")
#: Make targets that run several commands.
_TARGET_READS = dict.fromkeys(("pretrain", "finetune", "import", "examples"), _MAKE_DATA)


def keys_of_target(target: str) -> tuple[str, ...]:
    """Return the keys that a make target's commands read. Empty if they read none."""
    return _TARGET_READS.get(target) or READS.get(target, ())


def target_reads(target: str, key: str) -> bool:
    """Return whether a make target reads a dotted key."""
    return is_read(key, keys_of_target(target))


def is_read(key: str, read: Sequence[str]) -> bool:
    """Return whether ``read`` contains a dotted key or one of the sections that the key belongs to."""
    first, *names = key.split(".")
    if first == "data" and names[:1] == ["sources"] and len(names) == 3:
        names[1] = "NAME"
    key = ".".join([first, *names])
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in read)
