"""A stage that starts from an adapter needs the adapter's folder only until it has a checkpoint."""

import shutil
from pathlib import Path

import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.schema.adapter import LoraSection
from tests.support.fork_server import run_command
from tests.support.training.pairs import STAGE, start_weights, with_pairs
from training.export.adapter import write_adapter
from training.layers.adapters.attach import attach_adapters, init_adapters
from training.runs import finetune_run

SETTINGS = {"rank": 2, "alpha": 4, "targets": ("attention",)}


def test_the_recorded_adapter_counts_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    _, layout = with_pairs(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("weights")
    keys = ["finetune.lora={rank: 2, alpha: 4}", f"finetune.lora.adapter={adapter}"]
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), [*STAGE, *keys])
    run = finetune_run(recipe, layout, "dpo")
    run.open("", replace=False)
    shutil.rmtree(adapter)
    with pytest.raises(RequestError, match=r"^finetune\.lora\.adapter=.*: there is no adapter_model.safetensors: name"):
        finetune_run(recipe, layout, "dpo")
    (run.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert finetune_run(recipe, layout, "dpo").begun()


# 40 seconds: five commands.
@pytest.mark.slow
@pytest.mark.engine
def test_a_stage_resumes_without_the_adapter_that_it_started_from(tmp_path: Path) -> None:
    recipe, layout = with_pairs(tmp_path)
    model, lora, adapter = start_weights(recipe), LoraSection(**SETTINGS), tmp_path / "adapter"
    attach_adapters(model, lora)
    init_adapters(model, 1)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    keys = ("finetune.lora={rank: 2, alpha: 4, targets: [attention]}", f"finetune.lora.adapter={adapter}")
    words = ["training", "finetune", "--recipe", str(tmp_path / "recipe.yaml"), *STAGE, *keys, "train.save_every=1"]
    missing = f"finetune.lora.adapter={adapter}: there is no adapter_model.safetensors: name a folder"
    assert missing in run_command(words, 2).stderr.splitlines()[-1]
    write_adapter(adapter, recipe.model, lora, named)
    assert "finished, 3 steps" in run_command(words).stdout
    folder = layout.finetune("dpo")
    last = folder / "checkpoints" / "step-00000003"
    files = manifest.require(last, "finetune").files
    shutil.rmtree(adapter)
    assert "up to date" in run_command(words).stdout
    (folder / manifest.NAME).unlink()
    shutil.rmtree(last)
    assert "resuming after step 2" in run_command(words).stdout
    assert manifest.require(last, "finetune").files == files
    (folder / manifest.NAME).unlink()
    shutil.rmtree(folder / "checkpoints")
    assert missing in run_command(words, 2).stderr.splitlines()[-1]
