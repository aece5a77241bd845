"""Export of adapters: peft loads them on the exported model, with the same logits."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.adapter import LoraSection
from tests.support.training.shapes import small
from tests.support.training.tiny_run import GPT, tiny_model, tiny_recipe
from tests.training.commands.test_export import with_data
from training.checkpoint.save import RunIdentity
from training.checkpoint.write_full import write_full
from training.commands import export as command
from training.commands.export import export
from training.export.adapter import read_adapter
from training.layers.adapters.attach import attach_adapters, init_adapters
from training.model_loading import load_model

DEEPSEEK = small(num_nextn_predict_layers=1, attention_bias=True).model_dump()
ROUTED = {"rank": 8, "alpha": 4, "targets": ("attention", "dense", "shared_experts", "routed_experts")}
#: Model and adapters.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deepseek": (DEEPSEEK, ROUTED),
    "deepseek_experts": (DEEPSEEK, {**ROUTED, "targets": ("routed_experts",)}),
    "deepseek_dora": (DEEPSEEK, {"rank": 3, "alpha": 6, "targets": ("attention",), "dora": True}),
    "gpt": (GPT, {"rank": 2, "alpha": 2}),
    "gpt_dora": (GPT, {"rank": 3, "alpha": 6, "dora": True}),
}


def adapted(root: Path, model: dict[str, Any], lora: dict[str, Any]) -> tuple[Recipe, RunLayout, Any]:
    """A tiny run with a checkpoint of a model whose adapters matter."""
    recipe = tiny_recipe(root, model)
    layout, network, section = with_data(recipe), tiny_model(recipe), LoraSection(**lora)
    attach_adapters(network, section)
    init_adapters(network, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "magnitude" in name else 0.1))
    keys = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    run = {"stage": "pretrain", "steps": 0, "lora": section.identity()}
    about = RunIdentity({"run": "test"}, {}, keys, {}, run)
    #: "pretrain", "steps": 0, "lora": section.identity()})
    write_full(layout.pretrain / "checkpoints", network, about)
    return recipe, layout, network


@pytest.mark.parametrize("name", CASES)
def test_peft_computes_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, layout, model = adapted(tmp_path, *CASES[name])
    ids = torch.randint(0, 80, (2, 24), generator=torch.Generator().manual_seed(1))
    wanted = model(ids).detach()
    # What evaluation, generation and later stages read.
    merged = load_model(recipe, layout.pretrain / "checkpoints" / "step-00000000", torch.device("cpu"))
    torch.testing.assert_close(merged(ids), wanted, atol=2e-5, rtol=1e-5)
    assert export(recipe) == 0
    assert "the logits of peft differ by at most " in capsys.readouterr().out
    base = transformers.AutoModelForCausalLM.from_pretrained(layout.export, dtype=torch.float32).eval()
    plain = base(ids, use_cache=False).logits
    assert (plain - wanted).abs().max() > 0.1, "or this would show nothing"
    theirs = peft.PeftModel.from_pretrained(base, str(layout.export / "adapter")).eval()
    torch.testing.assert_close(theirs(ids, use_cache=False).logits, wanted, atol=5e-5, rtol=1e-4)
    names = [*_settings(layout)["target_modules"], *(_settings(layout)["target_parameters"] or ())]
    assert not any("." not in target or target[0].isdigit() for target in names)


def _settings(layout: RunLayout) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((layout.export / "adapter" / "adapter_config.json").read_text())
    return settings


def test_a_merged_model_has_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, layout, model = adapted(tmp_path, *CASES["deepseek"])
    assert export(recipe) == 0
    assert export(load_recipe(str(tmp_path / "recipe.yaml"), ["export.merge=true"])) == 0
    assert "the logits of transformers differ by at most " in capsys.readouterr().out
    assert not (layout.export / "adapter").exists()
    ids = torch.randint(0, 80, (2, 24), generator=torch.Generator().manual_seed(1))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(layout.export, dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(ids, use_cache=False).logits, model(ids), atol=5e-5, rtol=1e-4)


def test_what_peft_lacks_is_refused(tmp_path: Path) -> None:
    recipe, layout, _ = adapted(tmp_path, DEEPSEEK, {"rank": 3, "alpha": 6, "dora": True})
    with pytest.raises(RequestError, match=r"no DoRA for the feed-forward layers .*: set export.merge=true"):
        export(recipe)
    assert not layout.export.exists()
    assert export(load_recipe(str(tmp_path / "recipe.yaml"), ["export.merge=true"])) == 0


def test_a_wrong_adapter_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft itself would say nothing: its B stays zero."""
    recipe, layout, _ = adapted(tmp_path, *CASES["gpt"])
    written = command.write_adapter

    def rename(folder: Path, *arguments: Any) -> None:
        written(folder, *arguments)
        path = folder / "adapter_config.json"
        path.write_text(path.read_text().replace("attn.c_attn", "attn.c_other"))

    monkeypatch.setattr(command, "write_adapter", rename)
    with pytest.raises(RuntimeError, match=r"peft reads .*c_attn.* differently: nothing is exported"):
        export(recipe)
    assert not layout.export.exists()


@pytest.mark.parametrize("name", ["deepseek", "gpt_dora"])
def test_an_adapter_is_read_back(name: str, tmp_path: Path) -> None:
    recipe, layout, model = adapted(tmp_path, *CASES[name])
    assert export(recipe) == 0
    adapters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    shapes, lora = {key: p.shape for key, p in adapters.items()}, LoraSection(**CASES[name][1])
    folder = layout.export / "adapter"
    read = dict(read_adapter(folder, recipe.model, lora, shapes))
    # A prediction layer's adapter is merged into the exported weights.
    assert set(read) == {key for key in adapters if name != "deepseek" or not key.startswith("model.layers.2.")}
    assert all(torch.equal(tensor, adapters[key]) for key, tensor in read.items())
    other = lora.model_copy(update={"rank": lora.rank + 1})
    with pytest.raises(RequestError, match=rf"adapter: r is {lora.rank}: set finetune\.b\.lora\.rank to that, not"):
        dict(read_adapter(folder, recipe.model, other, shapes, "finetune.b.lora"))
    with pytest.raises(
        RequestError, match=r"an adapter of another model or of other layers: \S+ is \(.*, for this rec"
    ):
        dict(read_adapter(folder, recipe.model, lora, {key: torch.Size((9, *s[1:])) for key, s in shapes.items()}))
    fewer = {key: shape for key, shape in shapes.items() if ".mlp." not in key}
    with pytest.raises(
        RequestError, match=r"other layers: \S+ has no place in the recipe's model with finetune\.b\.lora\.tar"
    ):
        dict(read_adapter(folder, recipe.model, lora, fewer, "finetune.b.lora"))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(RequestError, match=r"^finetune\.b\.lora\.adapter=.*: no adapter_config.json can be read"):
        dict(read_adapter(folder, recipe.model, lora, shapes, "finetune.b.lora"))
