"""Export and import of a run on disk: the folder holds the same model, or nothing is published."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.paths import CHECKOUT
from tests.support.training.shapes import small
from tests.support.training.tiny_run import GPT, TEXT, tiny_model, tiny_recipe
from tokenizer.base import MODEL_NAME, Tokenizer
from tokenizer.chat_template import BUILT_IN, load
from tokenizer.registry import load_tokenizer
from tokenizer.special_tokens import END_OF_TURN_ID
from tokenizer.train import _fit
from training.checkpoint.full_weights import read_weights
from training.checkpoint.save import RunIdentity
from training.checkpoint.write_full import write_full
from training.commands import import_model
from training.commands.export import export
from training.export import folder as export_folder
from training.export import proof
from training.export.directory import weights_in
from training.model_loading import load_model
from training.runs import pretrain_run

transformers = pytest.importorskip("transformers")
DEEPSEEK = small(num_nextn_predict_layers=1, tie_word_embeddings=True).model_dump()
#: Digits, indents, several newlines, byte fallback, and SentencePiece's symbol for a space.
ODD_TEXT = "def f(x):\n    return  x\n\n\n\ta\u2581b 2024 😀 é  -- -- ---\r\n the the then \x00<0x41> \n "
MODELS: dict[str, dict[str, Any]] = {
    "gpt": GPT,
    "gpt_untied_without_biases": {**GPT, "tie_word_embeddings": False, "bias": False, "activation": "gelu_new"},
    "deepseek": DEEPSEEK,
}


def with_data(recipe: Recipe) -> RunLayout:
    """Write the data manifests of a tiny run."""
    layout = RunLayout.of(recipe)
    files = manifest.describe_files(layout.tokenizer)
    tokenizer_manifest = Manifest("tokenizer", {}, {}, {}, {}, files, {"vocab_size": 80, "reserved": []})
    manifest.write(layout.tokenizer, tokenizer_manifest)
    files = manifest.describe_files(layout.tokens)
    inputs = {"tokenizer": tokenizer_manifest.fingerprint}
    manifest.write(layout.tokens, Manifest("tokens", {}, inputs, {}, {}, files, {"vocab_size": 80}))
    return layout


def trained(root: Path, model: dict[str, Any], *overrides: str) -> tuple[Recipe, RunLayout, Any]:
    """A tiny run with a checkpoint of its weights."""
    root.mkdir(parents=True, exist_ok=True)
    recipe = tiny_recipe(root, model, *overrides)
    layout, network = with_data(recipe), tiny_model(recipe)
    about = RunIdentity({"run": "test"}, {}, {**recipe.model.identity(), "vocab_size": recipe.vocab_size}, {})
    write_full(layout.pretrain / "checkpoints", network, about)
    return recipe, layout, network


@pytest.mark.parametrize("name", MODELS)
def test_export_and_import_round_trip(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_folder, "_FILE_BYTES", 20_000)  # several files and an index
    recipe, layout, model = trained(tmp_path / "one", MODELS[name])
    assert export(recipe) == 0
    output = capsys.readouterr().out
    assert "read back identically; the logits of transformers differ by at most " in output
    assert manifest.faults(layout.export) == [] and (layout.export / "model.safetensors.index.json").exists()
    assert export(recipe) == 0 and "up to date" in capsys.readouterr().out
    other = tiny_recipe(tmp_path, MODELS[name])
    theirs = with_data(other)
    assert import_model.import_model(other, layout.export) == 0
    again = load_model(other, theirs.pretrain / "checkpoints" / "step-00000000", torch.device("cpu"))
    for (key, ours), loaded in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, loaded), key
    assert import_model.import_model(other, layout.export) == 0 and "up to date" in capsys.readouterr().out
    # Neither other weights nor those of a training that has started are replaced without run.replace.
    third, elsewhere, different = trained(tmp_path / "three", {**MODELS[name], "initializer_range": 0.3})
    assert export(third) == 0
    run = pretrain_run(third, elsewhere)
    run.open("", replace=True)
    write_full(run.folder / "checkpoints", different, RunIdentity(run.identity, {}, {}, {}))
    for one in (other, third):
        with pytest.raises(RequestError, match=r"already holds weights that are not a complete import .* run\.name"):
            import_model.import_model(one, elsewhere.export)


def test_weights_of_other_tokens_are_not_imported(tmp_path: Path) -> None:
    recipe, layout, _ = trained(tmp_path / "one", GPT)
    export(recipe)
    path = layout.export / "tokenizer.json"
    released = json.loads(path.read_text())
    vocab = released["model"]["vocab"]
    letter, other = (key for key, token in vocab.items() if token in (20, 21))
    vocab[letter], vocab[other] = vocab[other], vocab[letter]
    path.write_text(json.dumps(released))
    gpt = tiny_recipe(tmp_path, GPT)
    with_data(gpt)
    message = rf"token 20 is '{other}' in .*export and '{letter}' in the run's data: set tokenizer.kind=huggingface"
    with pytest.raises(RequestError, match=message):
        import_model.import_model(gpt, layout.export)
    path.write_text("{}")
    with pytest.raises(RequestError, match=r"tokenizer.json: cannot be read"):
        import_model.import_model(gpt, layout.export)
    assert not RunLayout.of(gpt).pretrain.exists()


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as from a shell, even if make runs the tests."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "SETUP=", *words]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)


def test_make_checks_the_folder_first() -> None:
    done = make("import", "FROM=nowhere", "ARGS=run.name=mine")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: FROM=nowhere has no config.json: set FROM to a model"
    )
    assert not done.stdout
    assert make("import").stderr.startswith("error: FROM is not set: set FROM to a model")


def test_make_passes_the_folder_only_to_import() -> None:
    lines = make("-n", "import", "FROM=some folder", "ARGS=run.name=mine").stdout.splitlines()
    assert [line for line in lines if "--from" in line] == [line for line in lines if " -m training import " in line]
    assert '--from "some folder" ' in lines[-1] and lines[-1].endswith(" run.name=mine")
    assert any(" -m pipeline run " in line for line in lines)


def test_bf16_is_exported_as_bf16(tmp_path: Path) -> None:
    recipe, layout, model = trained(tmp_path, GPT, "train.precision=bf16")
    assert export(recipe) == 0
    weights = dict(weights_in(layout.export))
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["transformer.wte.weight"], model.model.embed_tokens.weight.to(torch.bfloat16))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_every_file_follows_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        recipe, layout, _ = trained(tmp_path, GPT)
        export(recipe)
    finally:
        os.umask(before)
    paths = [*layout.export.rglob("*"), *layout.pretrain.rglob("*")]
    modes = {path.name: path.stat().st_mode & 0o777 for path in paths}
    assert {"model.safetensors", "config.json", "rank-00000.safetensors"} <= modes.keys()
    wrong = {path.name for path in paths if modes[path.name] != (0o777 if path.is_dir() else 0o666) & ~umask}
    assert not wrong


def with_pieces(layout: RunLayout, text: str) -> Tokenizer:
    """Give a tiny run a SentencePiece tokenizer instead of its character tokenizer."""
    size = ["tokenizer.kind=bpe", "tokenizer.vocab_size=325"]
    (layout.tokenizer / "characters.json").unlink()
    (layout.tokenizer / MODEL_NAME).write_bytes(_fit([text], load_recipe(CHECKOUT / "tests" / "end-to-end.yaml", size)))
    return load_tokenizer(layout.tokenizer)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_its_tokenizer_equals_ours_in_transformers(kind: str, tmp_path: Path) -> None:
    recipe, layout, _ = trained(tmp_path, {**GPT, "vocab_size": 340})
    if kind == "bpe":
        with_pieces(layout, ODD_TEXT)
    export(recipe)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(layout.export), load_tokenizer(layout.tokenizer)
    for text in (TEXT, ODD_TEXT) if kind == "bpe" else (TEXT,):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == text
    ids = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    assert ids == (ours.begin_id, ours.end_of_text_id, ours.pad_id, ours.unknown_id)
    assert list(theirs("a")) == ["input_ids", "attention_mask"]
    assert (layout.export / MODEL_NAME).exists() == (kind == "bpe")


def test_fine_tuned_weights_are_exported_with_their_chat_template(tmp_path: Path) -> None:
    recipe, layout, model = trained(tmp_path, GPT)
    shutil.rmtree(layout.pretrain / "checkpoints")
    facts = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    about = RunIdentity({"run": "test"}, {}, facts, {}, {"steps": 1, "chat_template": BUILT_IN["chatml"]})
    write_full(layout.pretrain / "checkpoints", model, about)
    export(recipe)
    ours, theirs = load_tokenizer(layout.tokenizer), transformers.AutoTokenizer.from_pretrained(layout.export)
    messages = [{"role": "user", "content": "The fox"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == load("chatml", ours).prompt(messages)
    config = json.loads((layout.export / "generation_config.json").read_text())
    assert set(config["eos_token_id"]) == {ours.end_of_text_id, ours.end_of_turn_id}


def test_an_export_is_imported_if_its_pieces_are_the_same(tmp_path: Path) -> None:
    model = {**GPT, "vocab_size": 340}
    recipe, layout, _ = trained(tmp_path / "one", model)
    with_pieces(layout, ODD_TEXT)
    export(recipe)
    for name, text in (("two", ODD_TEXT), ("three", ODD_TEXT[::-1])):
        (tmp_path / name).mkdir()
        other = tiny_recipe(tmp_path / name, model)
        with_pieces(RunLayout.of(other), text)
        with_data(other)
        if text == ODD_TEXT:
            assert import_model.import_model(other, layout.export) == 0
            continue
        with pytest.raises(RequestError, match=r"in the run's data: make the data with .*tokenizer\.kind=run"):
            import_model.import_model(other, layout.export)
        # As other programs write it.
        (layout.export / "tokenizer.json").unlink()
        with pytest.raises(RequestError, match=r"in the run's data: make the data with .*tokenizer\.kind=run"):
            import_model.import_model(other, layout.export)


def test_generation_in_transformers_ends_where_ours_does(tmp_path: Path) -> None:
    """This includes the end of a turn, after which a fine-tuned model would produce untrained text."""
    recipe, layout, model = trained(tmp_path, {**GPT, "tie_word_embeddings": False})
    with torch.no_grad():
        model.model.norm.bias.fill_(1.0)
        model.lm_head.weight[END_OF_TURN_ID] = 10.0
    checkpoint = layout.pretrain / "checkpoints"
    shutil.rmtree(checkpoint / "step-00000000")
    about = RunIdentity({"run": "test"}, {}, {**recipe.model.identity(), "vocab_size": recipe.vocab_size}, {})
    write_full(checkpoint, model, about)
    export(recipe)
    tokenizer = transformers.AutoTokenizer.from_pretrained(layout.export)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(layout.export)
    prompt = tokenizer(["A dog", "fox"], padding=True, return_tensors="pt")
    generated = theirs.generate(**prompt, max_new_tokens=20, do_sample=False)[:, prompt["input_ids"].shape[1] :]
    assert generated.tolist() == [[END_OF_TURN_ID], [END_OF_TURN_ID]]
    stops = load_tokenizer(layout.tokenizer).stop_ids
    for name in ("config.json", "generation_config.json"):
        assert set(json.loads((layout.export / name).read_text())["eos_token_id"]) == stops


def test_a_wrong_export_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, layout, _ = trained(tmp_path, GPT)
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="logits of transformers differ by"):
        export(recipe)
    assert not layout.export.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "rope"}, "does not support model.positions=rope: it cannot be exported"),
        ({"window": 8}, "not support model.window=8"),
        ({"activation": "swiglu"}, "not support model.activation=swiglu"),
    ],
)
def test_unsupported_models_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        export(tiny_recipe(tmp_path, {**GPT, **changes}))


def test_families_without_a_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"model\.family=bigram has no released format"):
        export(tiny_recipe(tmp_path, {"family": "bigram"}))


def test_another_model_is_not_imported(tmp_path: Path) -> None:
    recipe, layout, _ = trained(tmp_path / "one", GPT)
    export(recipe)
    wrong = {
        r"has num_attention_heads=2, the recipe model.num_attention_heads=4": {**GPT, "num_attention_heads": 4},
        "has a vocabulary of 80, the recipe one of 90: set model.vocab_size=80": {**GPT, "vocab_size": 90},
    }
    for message, model in wrong.items():
        other = tiny_recipe(tmp_path, model)
        with pytest.raises(RequestError, match=message):
            import_model.import_model(other, layout.export)
        assert not RunLayout.of(other).pretrain.exists()
    with pytest.raises(RequestError, match=r"there is no config\.json"):
        import_model.import_model(recipe, tmp_path)
    path = layout.export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    other = tiny_recipe(tmp_path, GPT)
    with_data(other)
    with pytest.raises(RequestError, match="damaged"):
        import_model.import_model(other, layout.export)
    assert not RunLayout.of(other).pretrain.exists() or not list(RunLayout.of(other).pretrain.glob("checkpoints/*"))


def test_the_older_file_is_read(tmp_path: Path) -> None:
    recipe, layout, model = trained(tmp_path / "one", GPT)
    export(recipe)
    weights = dict(weights_in(layout.export))
    (layout.export / "model.safetensors").unlink()
    # As in old files: without a prefix, and with the causal mask among the weights.
    older = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    torch.save({**older, "h.0.attn.bias": torch.ones(1, 1, 64, 64)}, layout.export / "pytorch_model.bin")
    other = tiny_recipe(tmp_path, GPT)
    theirs = with_data(other)
    assert import_model.import_model(other, layout.export) == 0
    reread = dict(read_weights(theirs.pretrain / "checkpoints" / "step-00000000"))
    fresh = dict(model.named_parameters())
    assert reread.keys() == fresh.keys() and all(torch.equal(reread[name], fresh[name]) for name in reread)
