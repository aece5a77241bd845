"""The memory estimate agrees with what a built engine keeps, and the advice follows from it."""

import dataclasses
import functools
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.setup import alone
from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.paths import CHECKOUT
from tests.support.training.workers import fork_workers
from training.commands.estimate import finetuning_lines, memory_lines
from training.data.batch import Batch
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.engine.partitions import partitions
from training.estimate import advice, device_of, largest_micro_batch, memory
from training.estimate.activations import activations
from training.estimate.device import in_bytes
from training.estimate.finetuning import finetuning_recipe
from training.estimate.topology import topology_of
from training.models import registry
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.models.registry import build_model
from training.objective import Objective
from training.optim.build import bind_partitions, build_optimizer

SMALL = [
    "tokenizer.vocab_size=2048",
    "model.hidden_size=128",
    "model.num_hidden_layers=3",
    "model.num_attention_heads=4",
    "model.intermediate_size=256",
    "model.moe_intermediate_size=64",
    "model.n_routed_experts=8",
    "model.num_experts_per_tok=2",
    "train.context_length=256",
    "train.global_batch_tokens=2048",
    "train.micro_batch=4",
]


def recipe_of(*overrides: str, name: str = "benchmarks/estimate.yaml") -> Recipe:
    return load_recipe(CHECKOUT / name, list(overrides))


def built(recipe: Recipe) -> tuple[Any, Any]:
    """The engine of one rank on CPU, and the optimizer."""
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, 0)
    model.set_activation_checkpointing(recipe.train.activation_checkpointing)
    optimizer = build_optimizer(model, recipe.train.optimizer, recipe.train.learning_rate)
    experts = 1 if recipe.model.has_experts else None
    config = deepspeed_config(recipe.train, 1, experts, recipe.train.global_batch, recipe.micro_batch)
    engine = build_engine(model, optimizer, config, alone())
    bind_partitions(optimizer, engine)
    return engine, optimizer


def batch_of(recipe: Recipe) -> Batch:
    tokens = torch.randint(0, recipe.vocab_size, (recipe.micro_batch, recipe.train.context_length + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    if recipe.model.task == "language_modeling":
        return batch
    lengths = torch.full((recipe.micro_batch,), recipe.train.context_length)
    if recipe.model.task == "seq2seq":
        return dataclasses.replace(batch, source=tokens[:, 1:].contiguous(), source_lengths=lengths)
    labels = batch.labels[:, 0] % 2 if recipe.model.task == "sequence_classification" else batch.labels
    return dataclasses.replace(batch, labels=labels, lengths=lengths)


def kept_for_backward(engine: Any, recipe: Recipe) -> int:
    """Return the bytes of the storages that a forward pass keeps, without parameters.

    Includes storages that autograd saves, seen by its hooks, and Python objects that selective checkpointing keeps.
    """
    excluded = {parameter.untyped_storage().data_ptr() for parameter in engine.parameters()}
    excluded |= set(_storages())
    storages: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or its address would be reused
        return tensor

    engine.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = Objective(recipe.model, recipe.train)(engine, batch_of(recipe))
    storages |= {topology: size for topology, size in _storages().items() if topology not in excluded}
    assert sums
    return sum(storages.values())


def _storages() -> dict[int, int]:
    """Address and bytes of the memory of every tensor that Python tracks, except frozen ones."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.fixture
def frozen() -> Iterator[None]:
    """Ignores earlier objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def apart(check: Callable[..., None], folder: Path, *arguments: object) -> None:
    """Run a check in a separate process, since DeepSpeed changes PyTorch for the rest of its process."""
    fork_workers(functools.partial(_checked, check, arguments), 1, folder, folder / "log")


def _checked(check: Callable[..., None], arguments: tuple[object, ...], _folder: Path) -> None:
    torch.manual_seed(0)
    check(*arguments)


@pytest.mark.engine
@pytest.mark.parametrize(
    "changes",
    [
        ["train.zero_stage=0", "train.precision=fp32"],
        ["train.zero_stage=1", "train.precision=bf16"],
        ["train.zero_stage=1", "model.q_lora_rank=null", "model.n_shared_experts=2", "train.context_length=512"],
        ["train.zero_stage=1", "model.num_nextn_predict_layers=1", "model.first_k_dense_replace=2"],
        ["train.zero_stage=0", "train.precision=fp32", "model.first_k_dense_replace=3", "model.v_head_dim=16"],
    ],
)
def test_activations_kept_without_checkpointing_are_those_that_autograd_saves(
    changes: list[str], tmp_path: Path
) -> None:
    apart(_check_kept_without_checkpointing, tmp_path, changes)


def _check_kept_without_checkpointing(changes: list[str]) -> None:
    recipe = recipe_of(*SMALL, *changes)
    expected = kept_for_backward(built(recipe)[0], recipe)
    estimated = activations(recipe, topology_of(recipe, "cpu", recipe.micro_batch), recipe.micro_batch, "none").kept
    assert estimated == pytest.approx(expected, rel=0.03)


@pytest.mark.engine
@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_keeps_what_is_estimated(mode: str, precision: str, tmp_path: Path) -> None:
    apart(_check_checkpointing, tmp_path, mode, precision)


def _check_checkpointing(mode: str, precision: str) -> None:
    stage = 0 if precision == "fp32" else 1
    keys = [f"train.zero_stage={stage}", f"train.precision={precision}", f"train.activation_checkpointing={mode}"]
    recipe = recipe_of(*SMALL, *keys)
    estimated = activations(recipe, topology_of(recipe, "cpu", recipe.micro_batch), recipe.micro_batch, mode).kept
    assert estimated == pytest.approx(kept_for_backward(built(recipe)[0], recipe), rel=0.05)


_DENSE = "hidden_size: 128, num_hidden_layers: 3, num_attention_heads: 4, max_position_embeddings: 512"
DENSE = {
    "gpt": "model={family: gpt, " + _DENSE + "}",
    "gpt, dropout": "model={family: gpt, dropout: 0.1, " + _DENSE + "}",
    "gpt, rope, swiglu, rms": "model={family: gpt, norm: rms, positions: rope, activation: swiglu, bias: false, "
    + _DENSE
    + "}",
    "gpt, window": "model={family: gpt, window: 64, activation: relu, " + _DENSE + "}",
    "gpt, alibi": "model={family: gpt, positions: alibi, activation: gelu_new, " + _DENSE + "}",
    "encoder": "model={family: encoder, " + _DENSE + "}",
    "pairs": "model={family: encoder_decoder, " + _DENSE + "}",
    "pairs, dropout": "model={family: encoder_decoder, dropout: 0.1, norm_first: true, " + _DENSE + "}",
    "pairs, downsampled": "model={family: encoder_decoder, cross_downsample: 4, window: 64, " + _DENSE + "}",
    "classifier": "model={family: classifier, classes: 2, backbone: {family: gpt, " + _DENSE + "}}",
}


@pytest.mark.parametrize(
    ("name", "precision", "mode"),
    [
        *((name, "fp32", mode) for name in DENSE for mode in ("none", "selective")),
        *((name, "fp32", "full") for name in ("gpt", "encoder", "pairs", "pairs, dropout")),
        *((name, "bf16", "none") for name in ("gpt, dropout", "pairs, downsampled")),
    ],
)
def test_dense_models_keep_what_is_estimated(frozen, name: str, precision: str, mode: str) -> None:
    keys = (DENSE[name], "tokenizer.vocab_size=1024", "train.context_length=256", "train.global_batch_tokens=1024")
    alone = ("launch.processes=1", "train.micro_batch=4", "data.source={kind: sequences}")
    recipe = recipe_of(*keys, f"train.precision={precision}", *alone, name="configs/teaching/gpt-oz.yaml")
    model = build_model(recipe.model, recipe.vocab_size)
    registry.init_weights(model, 0)
    model.set_activation_checkpointing(mode)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    estimated = activations(recipe, topology_of(recipe, "cpu", 4), 4, mode).kept
    assert estimated == pytest.approx(kept_for_backward(model, recipe), rel=0.05)


@pytest.mark.engine
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (1, "fp32")])
def test_the_estimated_state_equals_that_of_the_engine(
    stage: int, precision: str, optimizer: str, tmp_path: Path
) -> None:
    apart(_check_state, tmp_path, stage, precision, optimizer)


def _check_state(stage: int, precision: str, optimizer: str) -> None:
    keys = [f"train.zero_stage={stage}", f"train.precision={precision}", f"train.optimizer.name={optimizer}"]
    recipe = recipe_of(*SMALL, *keys, "train.micro_batch=8")
    engine, _ = built(recipe)
    sums = Objective(recipe.model, recipe.train)(engine, batch_of(recipe))
    engine.backward(sums["cross_entropy"])
    engine.step()
    kept = partitions(engine)
    state = sum(
        value.nbytes
        for partition in kept.trained
        for value in kept.state(partition).values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    parts = memory(recipe, "cpu").parts
    assert parts["optimizer state"] == pytest.approx(state, rel=0.01)
    if stage:
        assert parts["master weights"] == pytest.approx(sum(p.master.nbytes for p in kept.trained), rel=0.01)
    weights = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
    assert parts["weights"] == pytest.approx(weights, rel=0.01)


def test_parts_are_partitioned_over_the_ranks() -> None:
    def parts(*keys: str) -> dict[str, float]:
        return memory(recipe_of("launch.processes=4", "train.micro_batch=2", *keys), "cuda").parts

    one, whole, cut = parts("train.expert_parallel=1"), parts("train.expert_parallel=4"), parts("train.zero_stage=3")
    assert one["master weights"] == pytest.approx(whole["master weights"])
    assert whole["weights"] < one["weights"] / 2
    assert cut["weights"] == pytest.approx(one["weights"] / 4, rel=0.001)
    overrides = ("launch.processes=4", "train.micro_batch=2", "train.zero_stage=2")
    plain, offloaded = (
        memory(recipe_of(*overrides), "cuda"),
        memory(recipe_of(*overrides, "train.offload_optimizer=cpu"), "cuda"),
    )
    assert offloaded.parts["optimizer state"] == offloaded.parts["gradients"] == 0
    moved = sum(plain.parts[part] for part in ("optimizer state", "master weights", "gradients"))
    assert plain.phases["step"] - offloaded.phases["step"] == pytest.approx(moved)


def test_largest_micro_batch_grows_with_memory_and_divides() -> None:
    recipe = recipe_of("launch.processes=2", "train.global_batch_tokens=24576", "train.micro_batch=1")
    sizes = [largest_micro_batch(recipe, gigabytes * 10**9, "cuda") for gigabytes in range(1, 40)]
    fitting = [size for size in sizes if size]
    assert sizes[0] is None and fitting == sorted(fitting) and fitting[-1] == 24 and len(set(fitting)) > 3
    assert all(24 % size == 0 for size in fitting)
    for gigabytes, size in enumerate(sizes, start=1):
        if size:
            assert memory(recipe, "cuda", size).peak <= gigabytes * 10**9
            larger = [d for d in (1, 2, 3, 4, 6, 8, 12, 24) if d > size]
            assert not larger or memory(recipe, "cuda", larger[0]).peak > gigabytes * 10**9


def test_advice_fits() -> None:
    recipe = recipe_of(
        "launch.processes=8", "train.expert_parallel=1", "train.context_length=4096", "train.global_batch_tokens=131072"
    )
    peaks = memory(recipe, "cuda", 1)
    available = int(peaks.peak * 0.9)
    assert peaks.phases["start"] < available < peaks.peak
    message = advice(recipe, available, "cuda")
    assert message.startswith("set train.activation_checkpointing=")
    changed = recipe_of(
        "launch.processes=8",
        "train.expert_parallel=1",
        "train.context_length=4096",
        "train.global_batch_tokens=131072",
        *message.removeprefix("set ").split(),
    )
    assert memory(changed, "cuda").peak <= available
    assert "all parameters that it computes with" in advice(recipe, int(peaks.phases["start"] / 2), "cuda")


def test_device_memory_comes_from_the_recipe_or_the_machine() -> None:
    assert device_of(recipe_of("launch.device_memory=12G")).bytes == 12 * 2**30
    assert in_bytes("512M") == 2**29 and in_bytes("3T") == 3 * 2**40
    one, two = (device_of(recipe_of(f"launch.processes={n}", "train.micro_batch=1")) for n in (1, 2))
    assert one.kind == "cpu" and one.bytes // 2 == two.bytes


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("deepseek-v3", ["launch.nodes=256"], ["2,048 ranks on GPU", "largest micro-batch that fits: 2 "]),
        ("deepseek-v2-lite", ["launch.nodes=1"], ["8 ranks on GPU", "largest micro-batch that fits: "]),
        (
            "deepseek-v2-lite",
            ["launch.nodes=1", "launch.processes=1", "train.expert_parallel=1"],
            ["the one rank on GPU", "not even micro-batch 1 fits"],
        ),
    ],
)
def test_the_command_imports_no_torch(name: str, overrides: list[str], expected: list[str]) -> None:
    arguments = ["--recipe", f"configs/{name}.yaml", "launch.device_memory=80G", *overrides]
    call = f"main(['estimate', *{arguments!r}])"
    code = f"import sys; from training.__main__ import main; sys.exit({call} or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
    assert any("peak at start" in line for line in memory_lines(recipe_of()))


def test_a_pair_of_answers_has_two_rows() -> None:
    """A preference stage's micro-batch has half as many examples, or needs twice the memory for activations."""
    length = recipe_of().train.context_length
    stage = ["finetune.learning_rate=1e-3", f"finetune.max_length={length}", "finetune.batch_examples=32"]
    stage.append("train.micro_batch=4")
    answers = recipe_of(*stage)
    pairs = recipe_of(*stage, "finetune.method=dpo", "finetune.examples.kind=files", "finetune.examples.path=a")
    sizes = [recipe.micro_batch_of(recipe.finetune[0]) for recipe in (answers, pairs)]
    assert sizes == [4, 2]
    for recipe, rows in ((answers, sizes[0]), (pairs, 2 * sizes[1])):
        estimated = memory(finetuning_recipe(recipe, recipe.finetune[0]), "cuda", stage=recipe.finetune[0])
        train = recipe.train.model_copy(update={"mask_documents": False})
        same = memory(recipe.model_copy(update={"train_section": train}), "cuda", rows)
        assert estimated.parts["activations"] == same.parts["activations"]
    (_, line) = finetuning_lines(pairs)
    assert f"fine-tuning dpo: micro-batch 2 x 2 x {length:,}, trains " in line
