"""Every fault of a recipe is one line that names the key, the file and the cure, and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import RequestError
from configs.load import dump_recipe, load_recipe

CHECKOUT = Path(__file__).parents[2]
DEMO = CHECKOUT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs").glob("*.yaml")), ids=lambda p: p.name)
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
        (["train.steps=abc"], ["train.steps", "'abc'"]),
        (["train.steps=1.5"], ["train.steps", "1.5"]),
        (["train.precision=fp8"], ["train.precision", "'bf16'"]),
        (["foo"], ["'foo'", "section.key=value"]),
        (["train.expert_parallel=3"], ["train.expert_parallel (3)", "2 processes"]),
        (["model.n_routed_experts=15", "model.n_group=1", "model.topk_group=1", "train.expert_parallel=2"],
         ["model.n_routed_experts (15)", "train.expert_parallel"]),
        (["launch.processes=3"], ["3 processes", "launch.processes"]),
        (["model.qk_rope_head_dim=15"], ["qk_rope_head_dim (15)", "even"]),
        (["model.num_experts_per_tok=17"], ["num_experts_per_tok (17)"]),
        (["model.n_group=3"], ["n_routed_experts (16)", "n_group (3)"]),
        (["model.n_group=16"], ["n_group (16)"]),
        (["model.vocab_size=100"], ["model.vocab_size (100)", "beyond the vocabulary"]),
        (["train.global_batch_tokens=1000"], ["global_batch_tokens (1000)", "context_length (256)"]),
        (["train.context_length=1024", "train.global_batch_tokens=4096"], ["max_position_embeddings (512)"]),
        (["train.schedule.warmup_steps=100000"], ["warmup_steps (100000)", "steps"]),
        (["data.source.kind=jsonl"], ["data.source.path"]),
        (["launch.nodes=2"], ["launch.nodes (2)", "torchrun"]),
        (["tokenizer.vocab_size=310", "tokenizer.spare_tokens=200"], ["tokenizer.vocab_size (310)"]),
        (["run.name=../elsewhere"], ["run.name"]),
        (["model.moe_intermediate_size=15"], ["moe_intermediate_size (15)", "no multiple of 8"]),
        (["launch.rendezvous=nonsense"], ["launch.rendezvous", "'nonsense'"]),
        (["train.deepspeed.zero_optimization.stage=3"], ["deepspeed.zero_optimization.stage", "remove it"]),
        (["train.deepspeed.optimizer.type=Adam"], ["deepspeed.optimizer", "remove it"]),
    ],
)  # fmt: skip
def test_faults_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO, overrides)
    message = str(fault.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "not YAML"), ("- 1", "mapping"), ("run: {name: x}", "model is missing"), ("", "mapping")],
)
def test_broken_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=words) as fault:
        load_recipe(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_numbers_are_numbers() -> None:
    recipe = load_recipe(DEMO, ["train.learning_rate=3e-4", "train.steps=100", "train.clip=1"])
    assert recipe.train.learning_rate == 3e-4
    assert recipe.train.steps == 100


@pytest.mark.parametrize("text", ["yes", "123", "Hello # world", "def f():", "a: b?", " two  spaces ", "[1, 2]"])
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert load_recipe(DEMO, [f"generate.prompt={text}"]).generate.prompt == text


def test_no_value_is_null() -> None:
    assert load_recipe(DEMO, ["data.root=null"]).data.root is None


def test_identity_leaves_topology_out() -> None:
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
