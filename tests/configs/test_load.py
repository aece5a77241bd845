"""An error in a recipe gives one line with the key, the file and the fix, and exit status 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from artefacts.errors import RequestError
from configs.load import dump_recipe, load_recipe
from configs.schema import Recipe
from configs.schema.renamed import RENAMED
from tests.support.paths import CHECKOUT

DEMO = CHECKOUT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_read_and_write(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.learningrate=1"], ["unknown key train.learningrate", "train.learning_rate"]),
        (["trian.steps=1"], ["override trian.steps=1", "unknown key trian", "train"]),
        (["train.steps=abc"], ["train.steps must be a valid integer, not 'abc'"]),
        (["train.steps=1.5"], ["train.steps must be a valid integer, not 1.5"]),
        (["train.precision=fp8"], ["train.precision must be 'fp32', 'bf16' or 'fp16', not 'fp8'"]),
        (["run.replace=5"], ["run.replace must be a valid boolean, not 5"]),
        (["foo"], ["'foo'", "section.key=value"]),
        (["train.expert_parallel=3"], ["train.expert_parallel (3)", "2 processes"]),
        (["model.n_routed_experts=15", "model.n_group=1", "model.topk_group=1", "train.expert_parallel=2"],
         ["model.n_routed_experts (15)", "train.expert_parallel"]),
        (["model={family: classifier, classes: 2, pooling: first, backbone: {family: gpt, hidden_size: 8,"
          " num_hidden_layers: 1, num_attention_heads: 2}}"], ["model.pooling=first", "last or mean"]),
        (["model={family: gpt, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}",
          "train.expert_parallel=2"], ["train.expert_parallel (2)", "no experts"]),
        (["launch.processes=3"], ["3 processes", "launch.processes"]),
        (["model.qk_rope_head_dim=15"], ["qk_rope_head_dim (15)", "even"]),
        (["model.num_experts_per_tok=17"], ["num_experts_per_tok (17)"]),
        (["model.n_group=3"], ["n_routed_experts (16)", "n_group (3)"]),
        (["model.n_group=16"], ["n_group (16)"]),
        (["model.vocab_size=100"], ["model.vocab_size (100)", "no rows for the last"]),
        (["train.global_batch_tokens=1000"], ["global_batch_tokens (1000)", "context_length (256)"]),
        (["train.context_length=1024", "train.global_batch_tokens=4096"], ["max_position_embeddings (512)"]),
        (["train.schedule.warmup_steps=100000"], ["warmup_steps (100000)", "steps"]),
        (["data.source.kind=jsonl"], ["data.source.path"]),
        (["data.source.kind=patterns", "data.source.path=a"], ["data.source", "path (a)", "kind=patterns"]),
        (["data.source.largest_step=2"], ["largest_step is read only by patterns", "kind=pydocs"]),
        (["data.source.kind=patterns", "data.source.largest_step=62"], ["data.source.largest_step", "61"]),
        (["data.source.kind=patterns", "data.source.min_chars=2000"], ["data.source", "min_chars (2000) is above"]),
        (["launch.nodes=2"], ["launch.nodes (2)", "torchrun"]),
        (["tokenizer.vocab_size=310", "tokenizer.spare_tokens=200"], ["tokenizer.vocab_size (310)", "256 bytes"]),
        (["tokenizer.kind=characters", "tokenizer.vocab_size=16"], ["tokenizer.vocab_size (16)", "next to 8 reserved"]),
        (["tokenizer.kind=characters", "model.vocab_size=100"], ["model.vocab_size (100)", "no rows for the last"]),
        (["tokenizer.kind=characters", "tokenizer.path=a"], ["path (a): kind=huggingface and kind=run need a path"]),
        (["run.name=../elsewhere"],
         ["run.name: '../elsewhere' is not valid: use letters, digits, ", "; examples: owt-0.5b"]),
        (["finetune.preference.beta=1"], ["finetune.preference is read with method=dpo only", "leave it out"]),
        (["finetune.method=dpo", "finetune.preference.loss=hinge"],
         ["finetune.preference.loss must be 'sigmoid', 'ipo' or 'sigmoid_norm', not 'hinge'"]),
        (["model.seed=1"], ["unknown key model.seed; there is run.seed and evaluate.seed and generate.seed"]),
        (["data.source.count=1"], ["unknown key data.source.count; keys of data.source are "]),
        (["moddel.hidden_size=1"], ["unknown key moddel; the nearest key is model"]),
        (["stuff.hidden_size=1"], ["unknown key stuff; sections are "]),
        (["train.precision=bf16", "model.moe_intermediate_size=15"], ["moe_intermediate_size (15)", "multiple of 8"]),
        (["launch.rendezvous=nonsense"], ["launch.rendezvous: 'nonsense' is not valid; examples: head:29500"]),
        (["launch.device_memory=lots"], ["launch.device_memory: 'lots' is not valid; examples: 80G"]),
        (["launch.slurm.time=soon"], ["launch.slurm.time: 'soon' is not valid; examples: 24:00:00, 2-12:00:00"]),
        (["launch.slurm.train.memory=8Q"], ["launch.slurm.train.memory: '8Q' is not valid; examples: 8G"]),
        (["train.deepspeed.zero_optimization.stage=3"], ["deepspeed.zero_optimization.stage", "remove it"]),
        (["train.deepspeed.optimizer.type=Adam"], ["deepspeed.optimizer", "remove it"]),
    ],
)  # fmt: skip
def test_errors_name_the_key(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, overrides)
    message = str(fault.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_error_names_the_new_name_of_a_renamed_key(old: str, new: str) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, [f"{old}=1"])
    assert str(fault.value) == f"override {old}=1: unknown key {old}: it was renamed to {new}"


def test_renamed_keys_exist_only_by_their_new_names() -> None:
    keys = set(Recipe.keys())
    assert keys.issuperset(RENAMED.values()) and keys.isdisjoint(RENAMED)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["finetune={learning_rate: 1e-3, max_length: 8}"],
         ["finetune: model.family=encoder_decoder is not a language model", "leave it out"]),
        (["train.packing=best_fit"], ["train.packing (best_fit): model.family=encoder_decoder", "leave it out"]),
        (["train.mask_documents=true"], ["train.mask_documents: model.family=encoder_decoder", "leave it out"]),
        (["train.mtp_loss=0.1"], ["train.mtp_loss (0.1): model.family=encoder_decoder", "one token ahead"]),
        (["train.sequence_loss=1e-4"], ["train.sequence_loss (0.0001): model.family=encoder_decoder", "no experts"]),
        (["data.source={}"], ["data.source has no targets", "data.source.target_field", "kind=parallel"]),
        (["data.source={}", "data.sources={a: {kind: sequences}, b: {kind: jsonl, path: a}}"],
         ["data.sources.b has no targets", "data.sources.b.target_field"]),
        (["data.source={}", "data.sources={a: {kind: sequences, weight: 2}}"],
         ["data.sources.a.weight (2)", "have no weight"]),
        (["data.source={kind: parallel, path: a}"], ["target_path is missing"]),
        (["data.source={kind: text, path: a, target_path: b}"], ["target_path is read only by parallel", "kind=text"]),
        (["data.source={kind: text, path: a, target_field: b}"], ["target_field is read only by jsonl, csv, parquet"]),
        (["data.source={kind: pydocs, target_field: name}"], ["target_field (name)", "kind or package"]),
        (["generate.crop=true"], ["generate.crop (True) is read only by language models", "leave it out"]),
        (["generate.temperature=0.5"], ["generate.temperature (0.5) is read only by language models"]),
        (["model.rope_theta=100", "model.positions=alibi"], ["rope_theta (100) is not read by alibi positions"]),
        (["model.initializer_range=0.5"], ["initializer_range"]),
        (
            ["train.router_bias_update_rate=0.1"],
            ["train.router_bias_update_rate (0.1): model.family=encoder_decoder has no experts here"],
        ),
        (["data.source.symbols=63"], ["data.source.symbols", "62"]),
        (["data.source.path=a"], ["path (a)", "kind=sequences"]),
    ],
)  # fmt: skip
def test_errors_in_examples_name_the_key(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(CHECKOUT / "configs" / "teaching" / "seq2seq-reverse.yaml", overrides)
    message = str(fault.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("overrides", "at_fault"),
    [
        (["data.source.split=x", "data.source.kind=jsonl", "data.source.path=a", "data.source.sample_bytes=9"], 0),
        (["data.source.sample_bytes=9", "data.source.kind=jsonl"], 1),
        (["train.steps=abc", "train.max_grad_norm=1", "train.steps=abd"], 2),
        (["train.max_grad_norm=1", "train.expert_parallel=3", "launch.grace_seconds=9"], 1),
        (["train.steps=9", "train.learning_rat=1", "train.max_grad_norm=1"], 1),
        (["data.sources={web: {kind: jsonl, path: a}}", "data.source={}", "data.sources.web.pth=a"], 2),
    ],
)
def test_the_invalid_override_is_named(overrides: list[str], at_fault: int) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, overrides)
    assert str(fault.value).startswith(f"override {overrides[at_fault]}: ")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{kind: jsonl, path: a, txt_field: b}", "unknown key data.sources.web.txt_field; the nearest key is "
         "data.sources.web.text_field"),
        ("{kind: jsonl}", "data.sources.web.path is missing: kind=jsonl reads from it"),
        ("a.jsonl", "data.sources.web is a section, not 'a.jsonl': set its keys, such as data.sources.web.kind"),
    ],
)  # fmt: skip
def test_errors_in_a_named_source(tmp_path: Path, section: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    named = re.sub(r"  source: .*", f"  sources: {{web: {section}}}", DEMO.read_text())
    path.write_text(named)
    with pytest.raises(RequestError) as fault:
        load_recipe(path)
    assert str(fault.value) == f"{path}: {words}"


SEVERAL = "run: {name: a}\ndata: {sources: {books: {kind: text, path: a}, web: {kind: jsonl, path: b}}}\n"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.compile=true", "train.zero_stage=3"], "model.compile needs train.zero_stage below 3"),
        (
            ["model.num_nextn_predict_layers=300"],
            "model.num_nextn_predict_layers (300) must be below train.context_length",
        ),
        (["model.topk_method=greedy"], "model.n_group (4) has no effect with topk_method=greedy"),
        (["model.adaptive_experts={mass: 0.5, minimum: 5}"], "model.adaptive_experts.minimum (5) exceeds"),
        (["model.rope_scaling={beta_slow: 33}"], "model.rope_scaling.beta_slow (33) exceeds beta_fast"),
        (["model.qk_rope_head_dim=7"], "model.qk_rope_head_dim (7) must be even"),
        (["generate.speculative=true", "generate.temperature=0.5"], "generate.temperature (0.5) must be 0 with"),
        (["model.router_noise={std: 0}"], "model.router_noise.std"),
        (
            ["model.rope_scaling.factr=4"],
            "unknown key model.rope_scaling.factr; the nearest key is model.rope_scaling.factor",
        ),
    ],
)
def test_errors_in_the_model_name_the_key(overrides: list[str], words: str) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, overrides)
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sources.wbe.weight=2", "data.sources.wbe.kind is missing; the sources are web, books; the kinds are "),
        ("data.sources.wbe.path=c", "data.sources.wbe.kind is missing; the sources are web, books; the kinds are "),
        ("data.source.path=c", "data.source.path and data.sources exclude each other: set "
         "data.sources.NAME.path (NAME: books, web)"),
        ("data.clean.near_dedup.threshold=0.5", "data.clean.near_dedup: 20 bands of 6 rows find only"),
        ("data.clean.min_chars=300000", "data.clean.min_chars (300000) is above max_chars"),
    ],
)  # fmt: skip
def test_errors_next_to_named_sources(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SEVERAL)
    with pytest.raises(RequestError) as fault:
        load_recipe(path, [override])
    assert str(fault.value).startswith(f"override {override}: {words}")


def test_a_recipe_with_several_sources_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SEVERAL)
    recipe = load_recipe(path)
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_repeated_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {name: a}\ndata:\n  workers: 1\n  source:\n    kind: pydocs\ndata: {}\n")
    with pytest.raises(RequestError) as fault:
        load_recipe(path)
    assert str(fault.value).startswith(f"{path}: line 6: data is already in line 2")
    with pytest.raises(RequestError, match=r"override data\.source={kind: .*: kind is already"):
        load_recipe(DEMO, ["data.source={kind: pydocs, kind: text}"])
    path.write_text(
        "run: {name: a}\ndata: {source: &base {kind: jsonl, path: a}, sources: {b: {<<: *base, path: c}}}\n"
    )
    with pytest.raises(RequestError, match=r"data\.source\.kind and data\.sources exclude"):
        load_recipe(path)


def test_a_named_source_accepts_text_verbatim() -> None:
    overrides = ["data.source={}", "data.sources.web.kind=jsonl", "data.sources.web.path=2024"]
    assert load_recipe(DEMO, overrides).data.sources["web"].path == "2024"


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "not YAML"), ("- 1", "mapping"), ("data: {}", "run is missing"), ("", "mapping")],
)
def test_broken_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=words) as fault:
        load_recipe(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


DATA_ONLY = "run: {name: corpus}\ndata: {source: {kind: jsonl, path: a}}\ntokenizer: {vocab_size: 400}\n"


def test_a_recipe_may_contain_only_data_sections(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(DATA_ONLY)
    recipe = load_recipe(path)
    assert not recipe.has_model and not recipe.packs and recipe.tokenizer.vocab_size == 400
    for section in ("model", "train"):
        with pytest.raises(RequestError, match=f"the recipe has no {section} section, .*configs/demo.yaml"):
            getattr(recipe, section)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    with pytest.raises(RequestError, match=r"override model.hidden_size=64: model.num_hidden_layers is missing"):
        load_recipe(path, ["model.hidden_size=64"])
    with pytest.raises(RequestError, match=r"tokenizer.vocab_size \(310\) leaves no room"):
        load_recipe(path, ["tokenizer.vocab_size=310", "tokenizer.spare_tokens=200"])


@pytest.mark.parametrize(
    "command", [["launch", "local", "pretrain"], ["training", "pretrain"], ["training", "estimate"]]
)
def test_training_names_the_missing_sections(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(DATA_ONLY)
    argv = [sys.executable, "-m", *command, "--recipe", str(path), f"run.root={tmp_path}"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "the recipe has no " in done.stderr


def test_numbers_are_numbers() -> None:
    recipe = load_recipe(DEMO, ["train.learning_rate=3e-4", "train.steps=100", "train.max_grad_norm=1"])
    assert recipe.train.learning_rate == 3e-4
    assert recipe.train.steps == 100


@pytest.mark.parametrize("text", ["yes", "123", "Hello # world", "def f():", "a: b?", " two  spaces ", "[1, 2]"])
def test_text_is_accepted_verbatim(text: str) -> None:
    assert load_recipe(DEMO, [f"generate.prompt={text}"]).generate.prompt == text


def test_null_is_read_as_none() -> None:
    assert load_recipe(DEMO, ["data.root=null"]).data.root is None


def test_paths_are_expanded_as_a_shell_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", "/disk")
    keys = ["run.root=~/runs", "data.root=$DISK/data", "generate.weights=${DISK}/w", "tokenizer.path=~/t"]
    recipe = load_recipe(DEMO, [*keys, "tokenizer.kind=run", "data.source.kind=text", "data.source.path=$DISK/*.txt",
                                "data.source.packages=null"])  # fmt: skip
    assert recipe.run.root == f"{tmp_path}/runs" and recipe.data.root == "/disk/data"
    assert recipe.generate.weights == "/disk/w" and recipe.tokenizer.path == f"{tmp_path}/t"
    assert recipe.data.source.path == "/disk/*.txt"
    (tmp_path / "$odd").mkdir()
    assert load_recipe(DEMO, [f"run.root={tmp_path}/$odd"]).run.root == f"{tmp_path}/$odd", "it is there"
    assert load_recipe(DEMO, ["run.root=123"]).run.root == "123"
    for path, says in (("$NOWHERE_SET/runs", "NOWHERE_SET is not set"), ("~nobody-here/runs", "no user nobody-here")):
        with pytest.raises(RequestError, match=rf"run\.root: .*{says}"):
            load_recipe(DEMO, [f"run.root={path}"])


def test_a_name_without_folder_or_suffix_suggests_a_recipe(tmp_path: Path) -> None:
    for path in ("demo", "demo.yaml", "configs/demo"):
        with pytest.raises(RequestError, match=r"no such recipe: did you mean configs/demo\.yaml\?"):
            load_recipe(path)
    with pytest.raises(RequestError, match=r"configs is a folder: name a recipe in it, such as configs/\w"):
        load_recipe("configs")


def test_identity_does_not_contain_topology() -> None:
    one, other = load_recipe(DEMO), load_recipe(DEMO, ["launch.processes=1", "train.micro_batch=1", "train.keep=9"])
    assert one.train.identity() == other.train.identity()
    assert one.train.identity() != load_recipe(DEMO, ["train.optimizer.beta2=0.99"]).train.identity()


@pytest.mark.parametrize("command", [["launch", "local", "pretrain"], ["training", "pretrain"], ["pipeline", "run"]])
def test_commands_exit_2_with_one_line(command: list[str]) -> None:
    argv = [sys.executable, "-m", *command, "--recipe", str(DEMO), "train.stepz=1"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
