"""A preference stage on any topology equals plain PyTorch, and its reference survives damage and resumption."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.metrics_log import read_records
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.fork_server import run_command, start
from tests.support.paths import CHECKOUT
from tests.support.training.pairs import HELD_OUT, MODEL, PAIRS, STAGE, start_weights, with_pairs
from tests.support.training.workers import fork_workers
from tests.support.waiting import wait_until
from tokenizer.special_tokens import IGNORED
from training.__main__ import main
from training.data.build import validation_windows
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.data.preferences import PreferenceExamples
from training.estimate import flops_per_token
from training.evaluate.preferences import evaluate_preferences
from training.evaluate.results import Evaluation
from training.export.adapter import write_adapter
from training.models.registry import init_weights
from training.objective import Objective
from training.optim.build import build_optimizer
from training.optim.schedules import learning_rate
from training.optim.trained_part import TrainedPart
from training.preference.loss import REWARDS
from training.preference.objective import LOSS, PreferenceObjective, log_probabilities
from training.runs import finetune_run

PAD = 3
MEASURED = ("loss", *REWARDS)
LORA = ["finetune.lora.rank=8", "finetune.lora.alpha=16", "finetune.reset=[embeddings]"]
LORA += ["finetune.lora.targets=[attention,routed_experts]"]
IPO = ["finetune.preference.loss=ipo", "finetune.preference.beta=0.5"]


def words(root: Path, *overrides: str) -> list[str]:
    return ["training", "finetune", "--recipe", str(root / "recipe.yaml"), *STAGE, *overrides]


def _finetune(plan: Path) -> None:
    """One rank of a stage. The command's words are in the file ``plan``."""
    torch.set_num_threads(1)
    status = main(json.loads(plan.read_text())[1:])
    assert status == 0, f"exit status {status}"


def train(root: Path, *overrides: str, ranks: int = 1) -> None:
    plan = root / "plan.json"
    plan.write_text(json.dumps(words(root, *overrides, f"launch.processes={ranks}")))
    fork_workers(_finetune, ranks, plan, root / "log.txt")


def recorded(layout: RunLayout, kind: str) -> list[list[float]]:
    """The loss and the rewards of every record of a kind, by step."""
    records = {r["step"]: r for r in read_records(layout.finetune("dpo") / "metrics.jsonl") if r["kind"] == kind}
    return [[record[name] for name in MEASURED] for record in records.values()]


def follow(recipe: Recipe, layout: RunLayout, steps: int) -> tuple[list[list[float]], list[float]]:
    """Plain PyTorch on one device: what is measured at every step, and at the end on the held-out pairs."""
    (section,) = recipe.finetune
    assert section.preference is not None
    model, reference = start_weights(recipe), start_weights(recipe)
    unmasked = recipe.train.model_copy(update={"mask_documents": False})
    objective = PreferenceObjective(recipe.model, unmasked, section.preference)
    splits = {name: PreferenceExamples(layout.examples_of("dpo"), name, PAD) for name in ("train", "held-out")}
    for split in splits.values():
        with torch.no_grad():
            logs = log_probabilities(objective, reference, split.read(range(len(split))))
        split.reference = logs.view(2, -1).T.numpy()
    optimizer = build_optimizer(model, recipe.train.optimizer, section.learning_rate)
    data, measured = ExampleData(splits["train"], section.batch_examples, recipe.run.seed), []
    train = recipe.train.model_copy(update={"steps": steps})
    schedule = train.schedule.model_copy(update={"kind": "cosine", "warmup_steps": 0, "final_fraction": 0.0})
    for step in range(steps):
        (batch,) = data.micro_batches(step, 0, 1, section.batch_examples)
        model.train()
        sums, counts = objective(model, batch), objective.counts(batch)
        optimizer.zero_grad()
        (sums[LOSS] / counts[LOSS]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, section.learning_rate, schedule)
        optimizer.step()
        measured.append([float(sums[name].detach()) / counts[name] for name in (LOSS, *REWARDS)])
    with torch.no_grad():
        held_out = objective.validate(model.eval(), splits["held-out"].read(range(HELD_OUT)))
    return measured, [float(total) / count for total, count in held_out.values()]


def check(root: Path, ranks: int, *overrides: str) -> None:
    recipe, layout = with_pairs(root, None, *overrides, f"launch.processes={ranks}")
    expected, validated = follow(recipe, layout, PAIRS // 4)
    train(root, *overrides, ranks=ranks)
    assert recorded(layout, "train") == [pytest.approx(row, abs=2e-5) for row in expected]
    assert recorded(layout, "validation")[-1] == pytest.approx(validated, abs=2e-5)
    before = next(r for r in read_records(layout.finetune("dpo") / "metrics.jsonl") if r["kind"] == "validation")
    assert (before["step"], before["pretraining_loss"]) == (
        0,
        pytest.approx(pretraining_loss(recipe, layout), abs=2e-5),
    )


@torch.no_grad()
def pretraining_loss(recipe: Recipe, layout: RunLayout) -> float:
    """The start weights' loss on pretraining's validation text, with pretraining's objective."""
    (batch,) = validation_windows(recipe, layout).spread(16, 16)
    loss, count = Objective(recipe.model, recipe.train).cross_entropy(start_weights(recipe), batch)
    return float(loss / count)


@pytest.mark.engine
def test_two_expert_parallel_ranks_equal_one_device(tmp_path: Path) -> None:
    """With ZeRO 3, and with an odd number of batches of held-out pairs for the two ranks.

    Pretraining masked documents. What is forgotten is measured with the same masks.
    """
    check(tmp_path, 2, "train.zero_stage=3", "train.mask_documents=true", *IPO)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_every_topology_equals_one_device(tmp_path: Path, stage: int, ranks: int, expert_parallel: int) -> None:
    if ranks % expert_parallel:
        pytest.skip("not a topology")
    check(tmp_path, ranks, f"train.zero_stage={stage}", f"train.expert_parallel={expert_parallel}")


@pytest.mark.engine
@pytest.mark.parametrize("trained", [LORA, pytest.param([], marks=pytest.mark.slow)])
def test_a_killed_stage_with_a_damaged_reference_resumes_from_the_start_weights(
    tmp_path: Path, trained: list[str]
) -> None:
    """The start weights include what the stage makes new: adapters, and here the embeddings."""
    steps = 30
    command, folders = {}, {}
    for name in ("alone", "killed"):
        layout = with_pairs(tmp_path / name)[1]
        command[name] = words(tmp_path / name, f"finetune.epochs={4 * steps / PAIRS}", "train.save_every=2", *trained)
        folders[name] = layout.finetune("dpo")
    run_command(command["alone"])
    recipe = load_recipe(tmp_path / "alone" / "recipe.yaml", [*STAGE, *trained])
    layout = RunLayout.of(recipe)
    examples = PreferenceExamples(layout.examples_of("dpo"), "held-out", PAD)
    tokens = int((examples.read(range(HELD_OUT)).labels[:HELD_OUT] != IGNORED).sum())
    kept = np.load(layout.finetune("dpo") / "reference" / "held-out.npy")
    tuned = layout.finetune("dpo") / "checkpoints" / f"step-{steps:08d}"
    assert before(recipe, layout, tuned) == pytest.approx(-float(kept[:, 0].sum()) / tokens, abs=1e-5)
    section, records = recipe.finetune[0], read_records(layout.finetune("dpo") / "metrics.jsonl")
    record = [record for record in records if record["kind"] == "train"][-1]
    flops = flops_per_token(recipe.model, recipe.vocab_size, section.max_length, predicts=False, stage=section)
    assert record["model_flops_per_second"] == pytest.approx(record["tokens_per_second"] * flops, rel=1e-3)
    folder, reference = folders["killed"], folders["killed"] / "reference"
    process = start(_command, command["killed"])
    # A step whose number differs from run to run, but is before the last one.
    wait_until(lambda: any((folder / "checkpoints").glob("step-*")), "checkpoint")
    process.kill()
    process.join()
    tables = {path.name: path.read_bytes() for path in reference.glob("*.npy")}
    assert set(tables) == {"train.npy", "held-out.npy"}
    values = np.load(reference / "train.npy")
    assert values.shape == (PAIRS, 2) and (values < 0).all()
    (reference / "train.npy").write_bytes(tables["train.npy"][:-1] + b"x")
    if (folder / manifest.NAME).exists():  # the machine is so busy that the run finished before it was killed
        (folder / manifest.NAME).unlink()
        shutil.rmtree(folder / "checkpoints" / f"step-{steps:08d}")
    assert "resuming after step" in run_command(command["killed"]).stdout
    assert {path.name: path.read_bytes() for path in reference.glob("*.npy")} == tables
    files = [manifest.require(f / "checkpoints" / f"step-{steps:08d}", "finetune").files for f in folders.values()]
    assert files[0] == files[1], "the resumed run does not end with the same weights"
    # Without sound start weights, the reference is not replaced. The trained weights must not.
    (folder / manifest.NAME).unlink()
    shutil.rmtree(folder / "checkpoints" / f"step-{steps:08d}")
    shutil.rmtree(reference)
    (weights,) = (folder.parents[1] / "pretrain" / "checkpoints").glob("*/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = run_command(command["killed"], 2)
    assert "sha256" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not reference.exists() and (folder / "checkpoints" / f"step-{steps - 2:08d}").exists()


def _command(arguments: list[str]) -> None:
    os.chdir(CHECKOUT)
    raise SystemExit(main(arguments[1:]))


def test_the_evaluation_compares_the_stage_with_its_start_weights(tmp_path: Path) -> None:
    recipe, layout = with_pairs(tmp_path, None, "evaluate.batch=4")
    (section,) = recipe.finetune
    assert section.preference is not None
    models = {Path("start"): start_weights(recipe), Path("tuned"): start_weights(recipe)}
    init_weights(models[Path("tuned")], 1)
    device = torch.device("cpu")
    facts = evaluate_preferences(recipe, layout, section, *(lambda m=m: m for m in models.values()), device)
    examples = PreferenceExamples(layout.examples_of("dpo"), "held-out", PAD)
    objective = PreferenceObjective(recipe.model, recipe.train, section.preference)
    with torch.no_grad():
        batch = examples.read(range(HELD_OUT))
        logs = [log_probabilities(objective, model, batch) for model in models.values()]
        examples.reference = logs[0].view(2, -1).T.numpy()
        expected = objective.validate(models[Path("tuned")], examples.read(range(HELD_OUT)))
    means = {name.removeprefix("rewards/"): float(total) / count for name, (total, count) in expected.items()}
    assert facts["preferences"] == pytest.approx({"loss": means.pop(LOSS), **means}, abs=1e-5)
    tokens = int((batch.labels[:HELD_OUT] != -100).sum())
    losses = [-float(log[:HELD_OUT].sum()) / tokens for log in logs]
    assert [facts["held_out_loss_before"], facts["held_out_loss_after"]] == pytest.approx(losses, abs=1e-5)
    assert facts["examples"] == HELD_OUT


def before(recipe: Recipe, layout: RunLayout, tuned: Path) -> float:
    """The loss of the held-out chosen answers before the stage, as ``evaluate`` measures it."""
    evaluation = Evaluation(recipe, layout, {}, layout.run / "scratch", layout.run / "battery")
    loss: float = evaluation._pairs("dpo", tuned)["held_out_loss_before"]
    return loss


def test_the_evaluation_compares_the_stage_with_the_adapter_that_it_started_from(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    trained = ["finetune.lora.rank=4", "finetune.lora.alpha=8", "finetune.reset=[embeddings]"]
    trained += ["finetune.lora.targets=[attention]"]
    recipe, layout = with_pairs(tmp_path, None, *trained, f"finetune.lora.adapter={folder}")
    (section,) = recipe.finetune
    assert section.lora is not None
    reference = start_weights(recipe)
    TrainedPart.of(section).prepare(reference, recipe.run.seed, new=True)
    adapters = {name: p for name, p in reference.named_parameters() if ".lora_" in name}
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter)
    write_adapter(folder, recipe.model, section.lora, adapters.items())
    run = finetune_run(recipe, layout, "dpo")
    run.open("", replace=False)
    examples = PreferenceExamples(layout.examples_of("dpo"), "held-out", PAD)
    batch = examples.read(range(HELD_OUT))
    with torch.no_grad():
        logs = log_probabilities(Objective(recipe.model, recipe.train), reference, batch)
    tokens = int((batch.labels[:HELD_OUT] != IGNORED).sum())
    (start_folder,) = (layout.pretrain / "checkpoints").glob("step-*")
    assert before(recipe, layout, start_folder) == pytest.approx(-float(logs[:HELD_OUT].sum()) / tokens, abs=1e-5)
    replaced = {name: parameter + 1 for name, parameter in adapters.items()}
    shutil.rmtree(folder)
    write_adapter(folder, recipe.model, section.lora, replaced.items())
    with pytest.raises(RequestError, match=r"finetune\.lora\.adapter=.*/adapter: .*/dpo started from another adapter"):
        before(recipe, layout, start_folder)


def test_examples_of_the_other_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    columns = {name: pyarrow.array([[1, 2]], pyarrow.list_(pyarrow.int32())) for name in ("ids", "labels")}
    pq.write_table(pyarrow.table(columns), tmp_path / "train-00000.parquet")
    with pytest.raises(RequestError, match=r"has no column ids_chosen: the examples were made for another method"):
        PreferenceExamples(tmp_path, "train", PAD)
    layout = with_pairs(tmp_path, MODEL)[1]
    with pytest.raises(RequestError, match=r"has no column ids: .* run `make examples"):
        ChatExamples(layout.examples_of("dpo"), "train", PAD)


def test_a_batch_holds_the_chosen_rows_then_the_rejected(tmp_path: Path) -> None:
    _, layout = with_pairs(tmp_path)
    examples = PreferenceExamples(layout.examples_of("dpo"), "held-out", PAD)
    examples.reference = np.arange(2 * HELD_OUT, dtype=np.float32).reshape(-1, 2)
    batch: Any = examples.read([3, 1])
    assert batch.inputs.shape == batch.labels.shape and len(batch.inputs) == 4
    assert batch.reference.tolist() == [6, 2, 7, 3]
    rows = pq.read_table(layout.examples_of("dpo") / "held-out-00000.parquet").to_pylist()
    for row, (index, side) in enumerate([(3, "chosen"), (1, "chosen"), (3, "rejected"), (1, "rejected")]):
        ids, labels = rows[index][f"ids_{side}"], rows[index][f"labels_{side}"]
        padding = batch.inputs.shape[1] - len(ids) + 1
        assert batch.inputs[row].tolist() == ids[:-1] + [PAD] * padding
        assert batch.labels[row].tolist() == labels[1:] + [-100] * padding
