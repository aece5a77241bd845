"""Import of model directories that transformers saved: the same logits, or one line that names the key or tensor."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.training.tiny_run import tiny_recipe
from tests.training.commands.test_export import with_data
from training.checkpoint.full_weights import read_weights
from training.commands.import_model import import_model
from training.model_loading import load_model

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
}
V2: dict[str, Any] = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
#: The model sections of recipes for the directories below.
RECIPES: dict[str, dict[str, Any]] = {
    "v3": {**SIZES, "n_group": 2, "routed_scaling_factor": 2.5},
    "v2": {**SIZES, **V2},
    "gpt": {
        "family": "gpt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bias": True,
        "activation": "gelu_new",
    },
}
Weights = dict[str, torch.Tensor]


def saved(folder: Path, kind: str, **changes: Any) -> Any:
    """A model of transformers with changes to its configuration, saved by transformers."""
    if kind == "gpt":
        sizes: dict[str, Any] = {"vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        tokens = {"bos_token_id": 1, "eos_token_id": 2}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **tokens, **changes}))
    else:
        release = {"v3": "DeepseekV3", "v2": "DeepseekV2"}[kind]
        groups = {"n_group": 2 if kind == "v3" else 1, "topk_group": 1, "q_lora_rank": None, "n_shared_experts": 1}
        config = getattr(transformers, f"{release}Config")(
            **{**SIZES, **groups, "vocab_size": 80, "num_key_value_heads": 2, "initializer_range": 0.2, **changes}
        )
        model = getattr(transformers, f"{release}ForCausalLM")(config)
    model.eval().save_pretrained(folder)
    return model


def edit(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()},
        path,
        metadata={"format": "pt"},
    )


def taken(root: Path, kind: str, folder: Path, **model: Any) -> Any:
    """Our model after an import into a new run."""
    root.mkdir(exist_ok=True)
    recipe = tiny_recipe(root, {**RECIPES[kind], **model})
    layout = with_data(recipe)
    assert import_model(recipe, folder) == 0
    return load_model(recipe, layout.pretrain / "checkpoints" / "step-00000000", torch.device("cpu"))


def require_same_logits(ours: Any, theirs: Any) -> None:
    ids = torch.randint(0, 80, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids, use_cache=False).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("v3", {}, {}),
        ("v3", {"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ("v3", {"q_lora_rank": 12, "attention_bias": True}, {"q_lora_rank": 12, "attention_bias": True}),
        ("v3", {"first_k_dense_replace": 0}, {"first_k_dense_replace": 0}),
        ("v3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, **YARN}}, {"rope_theta": 500.0}),
        ("v2", {}, {}),
        ("v2", {"mlp_bias": True, "attention_bias": True}, {"mlp_bias": True, "attention_bias": True}),
        ("v2", {"n_group": 2, "topk_group": 1}, {}),  # greedy routing ignores groups
        ("gpt", {}, {}),
        ("gpt", {"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
        ("gpt", {"attn_pdrop": 0.0}, {}),
    ],
)
def test_a_model_saved_by_transformers_is_the_same_model_here(
    kind: str, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(tmp_path / "theirs", kind, **theirs)
    if "rope_parameters" in theirs:
        ours = {**ours, "rope_scaling": {**YARN, "mscale": 0.0, "mscale_all_dim": 0.0}}
    require_same_logits(taken(tmp_path / "ours", kind, tmp_path / "theirs", **ours), model)


def old_rope(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in the style of transformers before version 5."""
    scaling = {"type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    return {**rest, "rope_theta": 10_000, "rope_scaling": scaling}


def test_both_spellings_of_rope_are_read(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", "v3")
    edit(tmp_path / "a", old_rope)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert theirs.state_dict().keys() == model.state_dict().keys()
    require_same_logits(taken(tmp_path / "one", "v3", tmp_path / "a", rope_scaling=YARN), theirs)
    edit(tmp_path / "a", lambda config: {**config, "rope_scaling": None, "unheard_of": 1, "quantization_config": None})
    require_same_logits(taken(tmp_path / "two", "v3", tmp_path / "a"), model)


def test_tensors_that_are_not_weights_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    model = saved(folder, "v3", tie_word_embeddings=True)
    # The bare model's names, tables of rotary positions, and a head that is tied to the embedding.
    rewrite(
        folder,
        lambda weights: {
            **{name.removeprefix("model."): tensor for name, tensor in weights.items()},
            "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
        },
    )
    require_same_logits(taken(tmp_path / "ours", "v3", folder, tie_word_embeddings=True), model)


def test_halves_and_several_files_are_read(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model = saved(folder, "v3").to(dtype)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="30KB")
        save_file({"model.norm.weight": torch.zeros(32)}, folder / "zz.safetensors")  # it is missing from the index
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        require_same_logits(taken(tmp_path / f"ours{dtype}", "v3", folder), theirs)
    missing = sorted(folder.glob("model-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(RequestError, match=rf"{missing.name} is missing, which model\.safetensors\.index\.json names"):
        taken(tmp_path / "broken", "v3", folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_files_are_read_with_an_index_too(zipped: bool, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    model = saved(folder, "gpt")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        places |= dict.fromkeys(part, file)
        torch.save({name: weights[name] for name in part}, folder / file, _use_new_zipfile_serialization=zipped)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    require_same_logits(taken(tmp_path / "ours", "gpt", folder), model)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(RequestError, match=r"pytorch_model\.bin\.index\.json: cannot be read"):
        taken(tmp_path / "broken", "gpt", folder)


def without_mscale(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN}}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "v3",
            {"quantization_config": {"quant_method": "fp8"}},
            r"quantization_config \(fp8\): convert them to bf16",
        ),
        ("v3", {"rope_interleave": False}, "rope_interleave is False"),
        ("v3", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ("v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("v3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is of type linear"),
        ("v3", {"rope_scaling": {"type": "yarn"}}, "rope_scaling has no factor"),
        ("v3", {"rope_scaling": {"type": "yarn", **YARN, "attention_factor": 1.5}}, r"has attention_factor=1\.5"),
        ("v3", {"rope_scaling": {"type": "yarn", **YARN, "truncate": False}}, "has truncate=False"),
        ("v3", {"model_type": "llama"}, r"model_type is 'llama', but model\.family=deepseek reads"),
        ("v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("gpt", {"add_cross_attention": True}, "add_cross_attention is True"),
        # A key that config.json leaves out has the default of transformers, not the recipe's value.
        ("v3", {"routed_scaling_factor": ...}, None),
        ("v3", {"n_group": ..., "topk_group": ...}, r"n_routed_experts \(4\) is not divisible by n_group \(8\)"),
        ("v2", {"first_k_dense_replace": ...}, r"has first_k_dense_replace=0, .*: set model\.first_k_dense_replace=0$"),
    ],
)
def test_a_key_of_another_model_is_refused_by_name(
    kind: str, change: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    saved(folder, kind)
    absent = [key for key, value in change.items() if value is ...]
    edit(folder, lambda config: {key: value for key, value in (config | change).items() if key not in absent})
    if message is None:
        taken(tmp_path / "ours", kind, folder)
        return
    with pytest.raises(RequestError, match=message) as refused:
        taken(tmp_path / "ours", kind, folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_all_keys_that_differ_are_listed_as_overrides(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", "v3", q_lora_rank=12, rms_norm_eps=1e-5)
    edit(tmp_path / "theirs", without_mscale)
    with pytest.raises(RequestError, match=r"q_lora_rank=12 .*'model\.rope_scaling=\{.*mscale: 0\.0.*\}'") as refused:
        taken(tmp_path / "ours", "v3", tmp_path / "theirs")
    overrides = shlex.split(str(refused.value).rpartition(": set ")[2])
    assert [override.partition("=")[0] for override in overrides] == [
        "model.q_lora_rank",
        "model.rope_scaling",
        "model.rms_norm_eps",
    ]
    assert import_model(load_recipe(tmp_path / "ours" / "recipe.yaml", overrides), tmp_path / "theirs") == 0


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("v3", lambda w: {**w, "lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)}, "as float8_e4m3fn"),
        ("v3", lambda w: {n: t for n, t in w.items() if "correction" not in n}, "lack model.*e_score_correction_bias"),
        ("v3", lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"}, "set model.tie_word_embeddings=true"),
        ("v3", lambda w: {**w, "norm.weight": w["model.norm.weight"]}, "have (model.)?norm.weight twice"),
        ("v3", lambda w: {**w, "score.weight": torch.ones(2, 32)}, "no tensor named score.weight"),
        (
            "v2",
            lambda w: {**w, "model.layers.1.mlp.gate.e_score_correction_bias": torch.ones(4)},
            "e_score.*no such tensor",
        ),
    ],
)
def test_a_tensor_of_another_model_is_refused_by_name(
    kind: str, change: Callable[[Weights], Weights], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    saved(folder, kind)
    rewrite(folder, change)
    with pytest.raises(RequestError, match=message) as refused:
        taken(tmp_path / "ours", kind, folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("kind", ["v3", "gpt"])
def test_a_head_that_differs_from_the_embedding_is_not_tied(kind: str, tmp_path: Path) -> None:
    saved(tmp_path / "theirs", kind, tie_word_embeddings=False)
    edit(tmp_path / "theirs", lambda config: {**config, "tie_word_embeddings": True})
    with pytest.raises(RequestError, match=r"different values.*set model\.tie_word_embeddings=false, in config"):
        taken(tmp_path / "ours", kind, tmp_path / "theirs", tie_word_embeddings=True)


def test_prediction_layers_that_transformers_dropped_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json declares one, but the weights have none."""
    folder = tmp_path / "theirs"
    model = saved(folder, "v3")
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1
    require_same_logits(taken(tmp_path / "none", "v3", folder), model)
    message = "num_nextn_predict_layers is 1 in config.json and 0 in the recipe: 1 prediction layer is not imported"
    assert message in capsys.readouterr().out
    with pytest.raises(RequestError, match=r"no weights of model\.layers\.2, .* set it to 0, or .*model\.new_predic"):
        taken(tmp_path / "one", "v3", folder, num_nextn_predict_layers=1)
    assert not (tmp_path / "one" / "tiny" / "pretrain").exists()


def test_new_prediction_layers_are_initialized_if_requested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "theirs"
    model = saved(folder, "v3")
    runs = []
    for name in ("one", "two"):
        ours = taken(tmp_path / name, "v3", folder, num_nextn_predict_layers=1, new_prediction_layers=True)
        require_same_logits(ours, model)
        runs.append(ours.state_dict())
    assert "1 prediction layer is not in the directory: initialized from run.seed" in capsys.readouterr().out
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    assert float(runs[0]["model.layers.2.eh_proj.weight"].std()) > 0
    # The key matters for the import only: without it the weights are the same.
    recipe = load_recipe(tmp_path / "two" / "recipe.yaml", ["model.new_prediction_layers=false"])
    checkpoint = RunLayout.of(recipe).pretrain / "checkpoints" / "step-00000000"
    assert dict(read_weights(checkpoint)).keys() == runs[0].keys()
    load_model(recipe, checkpoint, torch.device("cpu"))


def test_prediction_layers_on_disk_are_imported_as_far_as_the_recipe_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.export.deepseek import released_config
    from training.export.weights import released_weights
    from training.models.registry import build_model, init_weights

    recipe = tiny_recipe(tmp_path, {**RECIPES["v3"], "num_nextn_predict_layers": 2})
    full = build_model(recipe.model, 80)
    init_weights(full, 5)
    folder = tmp_path / "full"
    folder.mkdir()
    save_file({name: t.clone() for name, t in released_weights(full)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(released_config(recipe.model, 80)))
    for depth in (2, 1, 0):
        ours = taken(tmp_path / f"depth{depth}", "v3", folder, num_nextn_predict_layers=depth).state_dict()
        wanted = {n: t for n, t in full.state_dict().items() if not n.startswith(tuple(map(drop, range(depth, 2))))}
        assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in ours)
        out = capsys.readouterr().out
        left = {2: None, 1: "1 prediction layer is not", 0: "2 prediction layers are not"}[depth]
        assert ("not imported" not in out) if left is None else (left in out)
    # A layer with half of its tensors is damaged, not missing.
    rewrite(folder, lambda weights: {n: t for n, t in weights.items() if n != "model.layers.3.enorm.weight"})
    with pytest.raises(RequestError, match=r"lack model\.layers\.3\.enorm\.weight"):
        taken(tmp_path / "half", "v3", folder, num_nextn_predict_layers=2, new_prediction_layers=True)


def drop(depth: int) -> str:
    return f"model.layers.{2 + depth}."
