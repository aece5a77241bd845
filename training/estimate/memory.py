"""Closed-form estimate of a rank's memory, by part and phase. The overall peak is the highest peak of any phase.

The formulas follow the source code of DeepSpeed 0.19 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``,
``bf16_optimizer.py``), AutoEP and this package. ``benchmarks/estimate.py`` compares them with measured peaks.
"""

from dataclasses import dataclass, field, replace

from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate.activations import Activations, activations
from training.estimate.device import Kind
from training.estimate.finetuning import trained_numbers
from training.estimate.parameters import parameters
from training.estimate.topology import Topology, topology_of

#: Number of fp32 states that an optimizer keeps per parameter. Muon updates tables as AdamW does.
_STATES = {"adamw": 2, "adam": 2, "sgd": 1, "muon": 1}
#: Measured memory of libraries, in bytes: thread stacks on CPU, and the workspace of the matrix libraries on GPU.
_LIBRARIES = {"cpu": 40_000_000, "cuda": 80_000_000}
#: Memory of compiled oneDNN kernels in bytes: ``_COMPILED`` times the square root of the rows per expert, but at most
#: ``_MAX_COMPILED``. On CPU in bf16, oneDNN compiles a kernel for each number of rows per expert and caches up to 1,024
#: kernels. After ten micro-batches, they took up 264, 430 and about 600 MB for 128, 256 and 512 rows per expert.
_COMPILED, _MAX_COMPILED = 27_000_000, 650_000_000


@dataclass(frozen=True)
class Memory:
    """Memory that a rank needs, in bytes. All fields except ``host`` refer to the compute device.

    Attributes:
        parts: breakdown at the peak of training, by name.
        phases: peak of each phase: ``start``, ``forward and backward``, ``reduction``, ``step``, ``saving``.
        host: peak on a GPU's host: the model during construction, or offloaded state plus a checkpoint's copy.
        modes: activations saved for the backward pass under each activation checkpointing mode.
    """

    parts: dict[str, float]
    phases: dict[str, float]
    host: float = 0.0
    modes: dict[str, float] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> float:
        return self.phases[self.phase]


def memory(
    recipe: Recipe,
    device: Kind,
    micro_batch: int | None = None,
    mode: str = "",
    stage: FinetuneSection | None = None,
) -> Memory:
    """Estimate a recipe's memory on a device. ``micro_batch`` and ``mode`` (checkpointing) override the recipe's.

    ``stage`` is the fine-tuning stage that determines what is trained, or None for pretraining. ``finetuning_recipe``
    returns the recipe to use with it.
    """
    if device == "mps":
        return _unified(memory(recipe, "cuda", micro_batch, mode, stage))
    samples = micro_batch or recipe.micro_batch
    topology = topology_of(recipe, device, samples, stage)
    modes = {name: activations(recipe, topology, samples, name) for name in ("none", "selective", "full")}
    kept = modes[mode or recipe.train.activation_checkpointing]
    weights, master, grads, states = _state(recipe, topology)
    # Parameters that no other rank has a copy of are not partitioned, so they need no gathering.
    gathered = min(sum(topology.replicated), topology.live) * topology.width if topology.stage == 3 else 0.0
    libraries = _libraries(recipe, topology, samples)
    away = master + states if topology.offloaded else 0.0
    base = weights + master + states + libraries + gathered - away
    passes, buffers = _passes(topology, kept, grads)
    copy = _checkpoint_copy(topology, recipe.ranks, master, states)
    phases = {
        "start": _start(topology),
        "forward and backward": base + passes,
        "reduction": base + _reduction(topology, grads),
        "step": base + grads + topology.share * 2.0,
    }
    if device == "cpu" and recipe.train.save_every:
        phases["saving"] = base + passes + copy  # the copy's memory is reused for the next checkpoint
    elif device == "cpu" and recipe.train.simulate_crash_at is None:
        phases["saving"] = base + copy + _kept_grads(topology, grads)
    parts = {
        "weights": weights,
        "gathered weights": gathered,
        "master weights": 0.0 if away else master,
        "optimizer state": 0.0 if away else states,
        "gradients": grads,
        "activations": kept.kept - kept.loss_kept,
        "loss": kept.loss_kept + kept.loss_working,
        "communication buffers": buffers,
        "libraries": libraries,
    }
    totals = {name: activation.kept for name, activation in modes.items()}
    return Memory(parts, phases, _host(topology, away, copy), totals)


def _unified(separate: Memory) -> Memory:
    """Add the host's memory to the device's, for a GPU that shares memory with its host."""
    phases = {name: size + separate.host for name, size in separate.phases.items()}
    return replace(separate, parts={**separate.parts, "host": separate.host}, phases=phases, host=0.0)


def checkpoint_bytes(recipe: Recipe, stage: FinetuneSection | None = None) -> int:
    """Return the total size of one checkpoint in bytes.

    It holds one copy of every trained fp32 weight and of its optimizer states, and of every frozen weight.
    """
    counts = parameters(recipe.model, recipe.vocab_size)
    if stage is None:
        return round(4.0 * counts.all + _optimizer_states(recipe, counts.all, counts.tables))
    numbers, width = trained_numbers(recipe, stage), 4 if recipe.train.precision == "fp32" else 2
    states = _optimizer_states(recipe, numbers.total, numbers.tables)
    return round(4.0 * numbers.total + states + width * (counts.all + numbers.adapters - numbers.total))


def _optimizer_states(recipe: Recipe, count: int, tables: float) -> float:
    """Return the optimizer state's size in bytes for ``count`` parameters, of which ``tables`` are in tables."""
    states = 4.0 * count * _STATES[recipe.train.optimizer.name]
    return states + (4.0 * tables if recipe.train.optimizer.name == "muon" else 0.0)


def _state(recipe: Recipe, topology: Topology) -> tuple[float, float, float, float]:
    """Return the sizes in bytes of compute weights, fp32 master weights, gradient sums, and optimizer state."""
    sharded = topology.stage == 3
    weights = (topology.stored if sharded else topology.local) * float(topology.width)
    # Stages 1 to 3 keep a flat fp32 copy of a rank's partition even if the compute dtype is fp32.
    master = 4.0 * topology.share if topology.stage else 0.0
    tables = topology.trained_tables / (recipe.ranks if topology.stage else 1)
    states = _optimizer_states(recipe, topology.share, tables)
    # At stage 1, DeepSpeed's bf16 optimizer keeps both the gradients of the backward pass and their fp32 sums.
    full = topology.gradients * (4.0 + (topology.width if topology.flat_sums else 0))
    grads = full if topology.stage < 2 else 0.0 if topology.offloaded else 4.0 * topology.share
    return weights, master, grads, states


def _checkpoint_copy(topology: Topology, ranks: int, master: float, states: float) -> float:
    """Return the size in bytes of a rank's in-memory copy for a checkpoint.

    It holds master weights, optimizer state and frozen weights, without what other ranks copy
    (training/checkpoint/snapshot.py).
    """
    trained = (master or 4 * topology.share) + states
    if topology.stage == 0:
        trained /= max(1, ranks)
    return trained + topology.frozen * topology.width / max(1, ranks)


def _libraries(recipe: Recipe, topology: Topology, micro_batch: int) -> float:
    if topology.device == "cuda" or not (topology.half and topology.experts):
        return float(_LIBRARIES[topology.device])
    model = recipe.model.backbone_section
    assert isinstance(model, DeepseekSection)
    slots = micro_batch * recipe.train.context_length * model.num_experts_per_tok
    rows = slots * recipe.expert_parallel / model.n_routed_experts
    return _LIBRARIES["cpu"] + min(_MAX_COMPILED, _COMPILED * rows**0.5)


def _kept_grads(topology: Topology, grads: float) -> float:
    """Return the size in bytes of the gradients kept after a step: fp32 sums at stage 3, or flat sums at stage 1."""
    if topology.flat_sums:
        return 4.0 * topology.gradients
    return grads if topology.stage == 3 else 0.0


def _start(topology: Topology) -> float:
    """Return the peak memory during model construction, in bytes.

    The model arrives on the GPU in the compute dtype and, even at stage 3, unsharded.
    """
    if topology.device == "cpu":
        return _building(topology)
    return topology.width * (topology.local + (topology.stored if topology.stage == 3 else 0.0))


def _building(topology: Topology) -> float:
    """Return the size in bytes of the fp32 model during construction, including only this rank's experts.

    AutoEP copies these experts, one layer at a time, before it frees them. The experts of other ranks are never written
    (training/job.py), and unwritten pages take up no memory.
    """
    layer = topology.local_experts / max(1, topology.expert_layers)
    return 4.0 * (topology.local + topology.local_experts + layer)


def _host(topology: Topology, away: float, copy: float) -> float:
    """Return the peak memory on a GPU's host, in bytes: ``away`` is offloaded state, ``copy`` a checkpoint's copy."""
    if topology.device == "cpu":
        return 0.0
    if topology.offloaded and topology.stage > 1:
        away += 4.0 * topology.share  # gradients move to the host as they are computed
    return max(_building(topology), away + copy)


def _passes(topology: Topology, kept: Activations, grads: float) -> tuple[float, float]:
    """Return a micro-batch's peak memory, and the size of the communication buffers included in it, both in bytes.

    The peak includes gradients but not the persistent state. The backward pass starts at the last layer. At each layer,
    memory holds the activations of this and earlier layers, the gradients of this and later layers, and temporary
    buffers.
    """
    buffer = _bucket(topology)
    held = buffer if topology.stage == 3 else 0.0
    layers = max(1, len(kept.layers))
    present = grads if topology.accumulates else _kept_grads(topology, grads)
    # At stage 2, gradients exist only in the buffer until it is full or the passes are done.
    summed = grads * max(0.0, 1 - topology.bucket / max(1, topology.gradients)) if topology.stage == 2 else grads
    left = kept.kept
    highest = present + left + held + max([kept.loss_working, *(layer.forward for layer in kept.layers)])
    left -= kept.loss_kept
    for done, layer in enumerate(reversed(kept.layers)):
        share = (done + 1) / layers
        highest = max(
            highest,
            present
            + max(0.0, summed - present) * share
            + left
            + layer.backward
            + buffer * (share if topology.stage == 2 and topology.device == "cpu" else 1.0),
        )
        left -= layer.kept
    return highest, buffer


def _bucket(topology: Topology) -> float:
    """Return the size in bytes of DeepSpeed's gradient reduction buffer during the backward pass.

    Stages 1 and 2 allocate the buffer when a backward pass computes its first gradient, in fp32 like the gradient sums
    (stage 1) or in the compute dtype (stage 2). Stage 3 uses fp32 and flushes the buffer whenever the process group
    changes, i.e. at every layer with experts. On GPU, the entire buffer takes up memory. On CPU, only pages that have
    been written take up memory, and stage 1 writes none before the end of the backward pass.
    """
    if topology.stage == 0 or topology.flat_sums:
        return 0.0
    width = topology.width if topology.stage == 2 else 4
    if topology.device == "cuda":
        return float(topology.bucket * width)
    if topology.stage == 3:
        return 4.0 * min(topology.bucket, topology.trained[1] / max(1, topology.expert_layers))
    return float(min(topology.bucket, topology.gradients) * width) if topology.stage == 2 else 0.0


def _reduction(topology: Topology, grads: float) -> float:
    """Return the size in bytes of gradient sums and buffers at the end of the backward pass, excluding activations."""
    if topology.stage < 2:
        return grads + _bucket(topology) + 4.0 * min(topology.bucket, max(topology.trained))
    if topology.stage == 2 and not topology.offloaded:
        # Before the sums exist, each group that other ranks also hold has flat copies: one in the compute dtype and, if
        # that is not fp32, one in fp32.
        copied = [min(pair) for pair in zip(topology.replicated, topology.trained, strict=True)]
        flat = min(topology.bucket, max(copied)) * (topology.width + (4.0 if topology.half else 0.0))
        return _bucket(topology) + (grads + flat if topology.accumulates else max(grads, flat))
    return grads + _bucket(topology)
