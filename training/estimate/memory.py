"""Memory of a rank by part and phase, in closed form: the peak is that of the phase that takes most.

Read from the sources of DeepSpeed 0.19 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``, ``bf16_optimizer.py``), of
AutoEP and ours; ``benchmarks/estimate.py`` measures how far off it is.
"""

from dataclasses import dataclass, field, replace

from configs.schema import Recipe
from configs.schema.models.deepseek import DeepseekSection
from training.estimate.activations import Activations, activations
from training.estimate.device import Kind
from training.estimate.parameters import parameters
from training.estimate.topology import Topology, topology

#: Elementwise fp32 states that an optimiser keeps of a parameter; muon steps on tables as adamw does.
_STATES = {"adamw": 2, "adam": 2, "sgd": 1, "muon": 1}
#: Measured, no formula: threads' stacks on CPU; on GPUs what the matrix libraries reserve.
_LIBRARIES = {"cpu": 40_000_000, "cuda": 80_000_000}
#: Likewise, on CPU in bf16: oneDNN compiles products anew for each number of an expert's rows and keeps up to 1,024.
#: 264, 430 and some 600 MB at 128, 256 and 512 rows an expert, after ten micro-batches.
_COMPILED, _COMPILED_MOST = 27_000_000, 650_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank on the device it computes on.

    Attributes:
        parts: what lies there at the highest moment of training, by name.
        phases: the highest of each phase: ``start``, ``forward and backward``, ``reduction``, ``step``, ``saving``.
        host: in a GPU's host at its highest: the model when it is built, or offloaded state and a checkpoint's copy.
        modes: bytes kept for the backward pass under each mode of checkpointing.
    """

    parts: dict[str, float]
    phases: dict[str, float]
    host: float = 0.0
    modes: dict[str, float] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> float:
        return self.phases[self.phase]


def memory(recipe: Recipe, device: Kind, micro_batch: int | None = None, mode: str = "") -> Memory:
    """Of a recipe on a device; ``micro_batch`` and ``mode`` (of checkpointing): others than the recipe's."""
    if device == "mps":
        return _unified(memory(recipe, "cuda", micro_batch, mode))
    samples = micro_batch or recipe.micro_batch
    place = topology(recipe, device, samples)
    chosen = mode or recipe.train.activation_checkpointing
    modes = {name: activations(recipe, place, samples, name) for name in ("none", "selective", "full")}
    kept = modes[chosen]
    weights, master, grads, states = _state(recipe, place)
    # What no other rank has a copy of is not cut, and there is nothing to gather.
    gathered = min(sum(place.replicated), place.live) * place.width if place.stage == 3 else 0.0
    libraries = _libraries(recipe, place, samples)
    away = master + states if place.offloaded else 0.0
    base = weights + master + states + libraries + gathered - away
    passes, buffers = _passes(place, kept, grads)
    # A checkpoint's copy holds master weights and state (training/checkpoint/snapshot.py).
    copy = (master or 4 * place.share) + states
    if place.stage == 0:
        copy /= max(1, recipe.ranks)
    reduction = _reduction(place, grads)
    phases = {
        "start": _start(place),
        "forward and backward": base + passes,
        "reduction": base + reduction,
        "step": base + grads + place.share * 2.0,
    }
    if device == "cpu" and recipe.train.save_every:
        phases["saving"] = base + passes + copy  # the copy's memory is kept for the next one
    elif device == "cpu" and recipe.train.simulate_crash_at is None:
        phases["saving"] = base + copy + _kept_grads(place, grads)
    parts = {
        "weights": weights,
        "gathered weights": gathered,
        "master weights": 0.0 if away else master,
        "optimiser state": 0.0 if away else states,
        "gradients": grads,
        "activations": kept.kept - kept.loss_kept,
        "loss": kept.loss_kept + kept.loss_working,
        "communication buffers": buffers,
        "libraries": libraries,
    }
    totals = {name: found.kept for name, found in modes.items()}
    if place.offloaded and place.stage > 1:
        away += 4.0 * place.share  # gradients go to the host as they come
    host = max(_building(place), away + copy) if device == "cuda" else 0.0
    return Memory(parts, phases, host, totals)


def _unified(found: Memory) -> Memory:
    """Of a GPU that shares its host's memory: what the host holds beside it comes on top."""
    phases = {name: size + found.host for name, size in found.phases.items()}
    return replace(found, parts={**found.parts, "the host's side": found.host}, phases=phases, host=0.0)


def checkpoint_bytes(recipe: Recipe) -> int:
    """The size of one checkpoint over all ranks: fp32 weights and the optimiser's states of each, once."""
    all_weights = parameters(recipe.model, recipe.vocab_size).all
    return round(4.0 * all_weights + _optimizer_states(recipe, all_weights, 1))


def _optimizer_states(recipe: Recipe, count: int, ranks: int) -> float:
    """Bytes that the optimiser keeps of so many parameters, a share of the model's over so many ranks."""
    states = 4.0 * count * _STATES[recipe.train.optimizer.name]
    if recipe.train.optimizer.name == "muon":
        states += 4.0 * parameters(recipe.model, recipe.vocab_size).tables / ranks
    return states


def _state(recipe: Recipe, place: Topology) -> tuple[float, float, float, float]:
    """Bytes of weights that are computed with, fp32 masters, sums of gradients, optimiser state."""
    sharded = place.stage == 3
    weights = (place.share if sharded else place.local) * float(place.width)
    # Stages 1 to 3 keep a flat fp32 copy of their share even where fp32 is computed in.
    master = 4.0 * place.share if place.stage else 0.0
    states = _optimizer_states(recipe, place.share, recipe.ranks if place.stage else 1)
    # DeepSpeed's optimiser for bf16 at stage 1 keeps those of the backward pass beside their fp32 sums.
    whole = place.local * (4.0 + (place.width if place.flat_sums else 0))
    grads = whole if place.stage < 2 else 0.0 if place.offloaded else 4.0 * place.share
    return weights, master, grads, states


def _libraries(recipe: Recipe, place: Topology, micro_batch: int) -> float:
    if place.device == "cuda" or not (place.half and place.experts):
        return float(_LIBRARIES[place.device])
    model = recipe.model.backbone_section
    assert isinstance(model, DeepseekSection)
    slots = micro_batch * recipe.train.context_length * model.num_experts_per_tok
    rows = slots * recipe.expert_parallel / model.n_routed_experts
    return _LIBRARIES["cpu"] + min(_COMPILED_MOST, _COMPILED * rows**0.5)


def _kept_grads(place: Topology, grads: float) -> float:
    """What of the gradients outlives a step: the flat fp32 sums of bf16's stage 1 and of stage 3."""
    if place.flat_sums:
        return 4.0 * place.local
    return grads if place.stage == 3 else 0.0


def _start(place: Topology) -> float:
    """Built: on a GPU's host in fp32; what reaches the GPU is as wide as it is computed with, at stage 3 yet whole."""
    if place.device == "cpu":
        return _building(place)
    return place.width * (place.local + (place.share if place.stage == 3 else 0.0))


def _building(place: Topology) -> float:
    """The model in fp32, of its experts this rank's, which AutoEP copies before the old ones go, one layer's twice.

    Those of other ranks are never written (training/job.py), and memory that is not written is not taken.
    """
    layer = place.local_experts / max(1, place.expert_layers)
    return 4.0 * (place.local + place.local_experts + layer)


def _passes(place: Topology, kept: Activations, grads: float) -> tuple[float, float]:
    """Highest of a micro-batch's passes above the state, gradients included; and the buffers in it.

    Backward from the last layer: what it and those before keep, the gradients of those after, what it works in.
    """
    buffer = _bucket(place)
    held = buffer if place.stage == 3 else 0.0
    layers = max(1, len(kept.layers))
    there = grads if place.accumulates else _kept_grads(place, grads)
    # At stage 2 gradients are in the buffer alone until that is full or the passes are over.
    summed = grads * max(0.0, 1 - place.bucket / place.local) if place.stage == 2 else grads
    left = kept.kept
    highest = there + left + held + max([kept.loss_working, *(layer.forward for layer in kept.layers)])
    left -= kept.loss_kept
    for done, layer in enumerate(reversed(kept.layers)):
        share = (done + 1) / layers
        highest = max(
            highest,
            there
            + max(0.0, summed - there) * share
            + left
            + layer.backward
            + buffer * (share if place.stage == 2 and place.device == "cpu" else 1.0),
        )
        left -= layer.kept
    return highest, buffer


def _bucket(place: Topology) -> float:
    """DeepSpeed's buffer for gradients on their way, during the backward pass.

    Stages 1 and 2 make it at a backward pass' first gradient, in the dtype that they sum in or that they compute in;
    stage 3 holds one in fp32, and sends it off whenever the group of ranks changes, which experts' gradients do at
    each layer. A GPU holds all of it, CPU the pages that are written to: at stage 1 only once the passes are over.
    """
    if place.stage == 0 or place.flat_sums:
        return 0.0
    width = place.width if place.stage == 2 else 4
    if place.device == "cuda":
        return float(place.bucket * width)
    if place.stage == 3:
        return 4.0 * min(place.bucket, place.local_experts / max(1, place.expert_layers))
    return float(min(place.bucket, place.local) * width) if place.stage == 2 else 0.0


def _reduction(place: Topology, grads: float) -> float:
    """At the end of the backward pass, when no activation is left: the sums of gradients and buffers beside them."""
    if place.stage < 2:
        return grads + _bucket(place) + 4.0 * min(place.bucket, max(place.plain, place.local_experts))
    if place.stage == 2 and not place.offloaded:
        # Before the sums are made, flat copies of each group that other ranks have too: in the dtype that is computed
        # in and, where that is half as wide, in fp32.
        flat = min(place.bucket, max(place.replicated)) * (place.width + (4.0 if place.half else 0.0))
        return _bucket(place) + (grads + flat if place.accumulates else max(grads, flat))
    return grads + _bucket(place)
