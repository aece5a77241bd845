"""A small recipe end to end: every stage is run by its command, on real documentation, in under a minute."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from artefacts import manifest
from artefacts.metrics_log import read_records
from configs.checks import run_weights
from configs.load import load_recipe
from configs.run_layout import RunLayout
from launch.plan import free_port
from tests.support.fork_server import run_command
from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE, wait_until
from tokenizer.chat_template import BUILT_IN
from tokenizer.registry import load_tokenizer
from training.model_loading import chat_template_of

RECIPE = CHECKOUT / "tests" / "end-to-end.yaml"
pytestmark = [pytest.mark.engine]


def call(*words: str, root: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    package, *verbs = (word for word in words if "=" not in word)
    overrides = [word for word in words if "=" in word]
    words = (package, *verbs, "--recipe", str(RECIPE), f"run.root={root}", *overrides)
    if package != "launch":
        return run_command([*words], expect)
    argv = [sys.executable, "-m", *words]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == expect, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


# Half a minute: the complete demo with three real starts of training; the tests below look at its results.
@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs in which the demo of the small recipe has finished."""
    folder = tmp_path_factory.mktemp("end-to-end")
    done = call("launch", "demo", root=folder)
    (folder / "out.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def layout(root: Path) -> RunLayout:
    return RunLayout.of(load_recipe(RECIPE, [f"run.root={root}"]))


def test_the_table_shows_the_results(root: Path) -> None:
    text = (root / "out.txt").read_text()
    names = ("documents", "tokens", "parameters", "speed", "bits per byte", "baselines", "expert load", "resume")
    for name in (*names, "fine-tuning", "completion", "report"):
        assert re.search(rf"^ *{name} ", text, re.MULTILINE), f"no row {name} in\n{text}"
    assert "20 losses before the crash and after the resume: equal bit for bit" in text


def test_every_artefact_is_complete(layout: RunLayout) -> None:
    for folder in (layout.documents, layout.tokenizer, layout.tokens, layout.examples_of("sft"), layout.evaluation):
        assert manifest.faults(folder) == []
    for folder in (layout.pretrain, layout.finetune("sft")):
        saved = manifest.read(folder)
        assert saved is not None
        assert manifest.faults(folder / "checkpoints" / saved.details["checkpoint"]) == []
    page = layout.report.read_text(encoding="utf-8")
    assert "<svg" in page or "data:image/" in page


def test_every_file_follows_the_umask(layout: RunLayout) -> None:
    os.umask(umask := os.umask(0))
    files = [path for path in layout.run.rglob("*") if path.is_file()]
    assert files and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_the_metrics_of_a_run(layout: RunLayout) -> None:
    records = list(read_records(layout.pretrain / "metrics.jsonl"))
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert sorted(set(steps)) == list(range(1, 45))
    assert sum(steps.count(step) == 2 for step in range(23, 43)) == 20
    last = [record for record in records if record["kind"] == "train"][-1]
    keys = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "model_flops_per_second", "memory_bytes"}
    assert keys <= last.keys()
    (layer,) = last["experts"].values()
    assert len(layer["load"]) == len(layer["bias"]) == 4
    assert sum(layer["load"]) == pytest.approx(4, abs=1e-2)
    assert any(layer["bias"])
    assert list((layout.pretrain / "tensorboard").iterdir())


def test_the_template_of_the_examples_is_used_in_conversations(layout: RunLayout) -> None:
    saved = manifest.require(layout.finetune("sft"), "finetune")
    examples = manifest.require(layout.examples_of("sft"), "examples")
    assert saved.details["chat_template"] == examples.details["template"]["source"] == BUILT_IN["chatml"]
    tokenizer = load_tokenizer(layout.tokenizer)
    template = chat_template_of(layout.finetune("sft") / "checkpoints" / saved.details["checkpoint"], tokenizer)
    prompt = tokenizer.decode(template.prompt([{"role": "user", "content": "Hi"}]), show_special=True)
    assert prompt == "<|begin|>user\nHi<|end|>\n<|begin|>assistant\n"
    pretrained = chat_template_of(layout.pretrain / "checkpoints" / "step-00000044", tokenizer)
    assert pretrained.source == BUILT_IN["millrace"]


def test_samples_are_taken_at_every_checkpoint(layout: RunLayout) -> None:
    steps = {}
    for stage in ("pretrain", "sft"):
        records = list(read_records(layout.training(stage) / "samples.jsonl"))
        assert {(record["kind"], record["prompt"]) for record in records} == {("sample", "What does")}
        steps[stage] = {record["step"] for record in records}
    assert max(steps["pretrain"]) == 44 and steps["sft"] == {4, 8}
    assert "What does (fine-tuning sft)" in layout.report.read_text(encoding="utf-8")


def test_running_again_does_nothing(root: Path, layout: RunLayout) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in layout.run.rglob("*") if p.is_file())
    done = call("launch", "demo", root=root)
    assert "nothing to do" in done.stdout
    assert before == sorted((p, p.stat().st_mtime_ns) for p in layout.run.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "command",
    [
        "pipeline run",
        "pipeline examples",
        "launch local pretrain",
        "launch demo",
        "training evaluate",
        "training report",
    ],
)
def test_finished_stages_answer_without_torch(root: Path, command: str) -> None:
    package, *verbs = command.split()
    arguments = [package, *verbs, "--recipe", str(RECIPE), f"run.root={root}"]
    code = (
        f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {arguments!r}; "
        f"runpy.run_module({package!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_start_of_training_imports_no_compiler(root: Path, tmp_path: Path) -> None:
    """DeepSpeed would import torch's compiler for its own Muon, which takes two seconds on every rank."""
    words = [f"run.root={tmp_path}", f"data.root={root / 'end-to-end'}", "launch.processes=1", "train.steps=5"]
    code = (
        f"import runpy, sys; sys.argv = {['training', 'pretrain', '--recipe', str(RECIPE), *words]!r}\n"
        "try: runpy.run_module('training', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'deepspeed' in sys.modules and 'torch._inductor.codegen' not in sys.modules"
    )
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_damaged_weights_are_refused(root: Path, layout: RunLayout, tmp_path: Path) -> None:
    saved = manifest.read(layout.pretrain)
    assert saved is not None
    copy = tmp_path / saved.details["checkpoint"]
    shutil.copytree(layout.pretrain / "checkpoints" / copy.name, copy)
    path = next(copy.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = call("training", "generate", f"generate.weights={copy}", root=root, expect=2)
    assert "sha256" in done.stderr.splitlines()[-1]


def test_another_number_of_processes_rebuilds_nothing(root: Path) -> None:
    assert "up to date" in call("launch", "local", "pretrain", "launch.processes=1", root=root).stdout


def test_generate_is_a_function_of_its_seed(root: Path) -> None:
    words = ("training", "generate", "generate.chat=false", "generate.prompt=Return the", "generate.temperature=1")
    first, again, other = (call(*words, f"generate.seed={seed}", root=root).stdout for seed in (1, 1, 2))
    assert first == again != other
    assert first.startswith("Return the")


def test_a_changed_recipe_is_rejected_or_moves_the_run_aside_with_replace(root: Path, layout: RunLayout) -> None:
    words = ["launch", "local", "pretrain", "train.learning_rate=0.002", "train.steps=6"]
    assert not run_weights.stale(layout, "sft")
    tokens = (layout.tokens / manifest.NAME).stat().st_mtime_ns
    finished = (layout.pretrain / manifest.NAME).read_bytes()
    refused = call(*words, root=root, expect=2)
    assert "holds another run (train.learning_rate 0.005 -> 0.002, train.steps 44 -> 6)" in refused.stderr
    assert (layout.pretrain / manifest.NAME).read_bytes() == finished
    done = call(*words, "run.replace=true", "launch.processes=1", root=root)
    assert "moved aside" in done.stdout
    (aside,) = (layout.run / "previous").glob("*-pretrain")
    assert (aside / manifest.NAME).read_bytes() == finished
    assert (layout.tokens / manifest.NAME).stat().st_mtime_ns == tokens
    # The fine-tuned weights are of the other run, and no weights are chosen silently.
    for verb in ("generate", "evaluate", "export"):
        refused = call("training", verb, root=root, expect=2)
        assert "finetune/sft is not current" in refused.stderr and "generate.stage=pretrain" in refused.stderr
    chosen = call("training", "generate", "generate.prompt=Return the", "generate.stage=pretrain", root=root)
    assert f"weights: pretrained, step 6 of 6: {layout.pretrain / 'checkpoints'}" in chosen.stderr


# Twenty seconds: three real starts, one with a signal, one resumed, one with another number of processes.
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_saves_and_exits_75_and_the_same_command_resumes(layout: RunLayout, tmp_path: Path, number) -> None:
    overrides = [f"run.root={tmp_path}", f"data.root={layout.data}", "train.steps=100000"]
    argv = [sys.executable, "-m", "launch", "local", "pretrain", "--recipe", str(RECIPE), *overrides]
    folder = tmp_path / "end-to-end" / "pretrain"
    process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: _steps(folder), "step")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, out + err
    assert "Traceback" not in err
    (saved,) = (folder / "checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    assert step == max(_steps(folder))
    assert manifest.faults(saved) == []
    again = [*argv, f"train.simulate_crash_at={step + 2}"]
    done = subprocess.run(again, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"resuming after step {step}" in done.stdout
    assert step + 2 in _steps(folder)
    if number == signal.SIGTERM:
        # Another number of processes: the unfinished run resumes all the same.
        other = [*argv, "launch.processes=1", f"train.simulate_crash_at={step + 2}"]
        done = subprocess.run(other, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1, done.stdout + done.stderr
        assert ", ranks 2 -> 1" in done.stdout
        twice = [r["loss"] for r in read_records(folder / "metrics.jsonl") if r.get("step") == step + 2]
        assert twice[0] == pytest.approx(twice[1], rel=1e-2)


def test_a_signal_before_anything_can_be_saved_also_exits_75(layout: RunLayout, tmp_path: Path) -> None:
    overrides = [f"run.root={tmp_path}", f"data.root={layout.data}", "train.steps=100000"]
    argv = [sys.executable, "-m", "launch", "local", "pretrain", "--recipe", str(RECIPE), *overrides]
    process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # From then on the launcher handles signals; the workers do so seconds later.
    wait_until(psutil.Process(process.pid).children, "agent")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, out + err
    assert "Traceback" not in err


def _steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_records(folder / "metrics.jsonl") if record["kind"] == "train"]


def test_a_dead_worker_ends_all_workers(layout: RunLayout, tmp_path: Path) -> None:
    overrides = [f"run.root={tmp_path}", f"data.root={layout.data}", "train.steps=100000"]
    argv = [sys.executable, "-m", "launch", "local", "pretrain", "--recipe", str(RECIPE), *overrides]
    process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: _steps(tmp_path / "end-to-end" / "pretrain"), "step")
    started = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in started if "training" in p.cmdline() and "torch.distributed.run" not in p.cmdline()]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launch", "local", "pretrain", "tokenizer.vocab_size=500"], "beyond the model's vocabulary of 500"),
        (["launch", "local", "finetune", "train.learning_rate=0.001"], "holds another run (train.learning_rate"),
        (["training", "pretrain", "train.steps=50"], "1 processes were started, but the recipe needs 2"),
        (["training", "generate", "generate.weights=/nowhere"], "/nowhere"),
        (
            ["training", "generate", "model.topk_method=greedy", "generate.stage=pretrain"],
            "was trained with model.topk_method=noaux_tc",
        ),
        (
            [
                "pipeline",
                "run",
                "data.source.kind=jsonl",
                "data.source.packages=null",
                "data.source.path=/nowhere.jsonl",
            ],
            "/nowhere.jsonl",
        ),
        (
            ["launch", "local", "pretrain", "train.deepspeed.zero_optimization.stage=3"],
            "is set from the recipe's own keys",
        ),
    ],
)
def test_invalid_requests_give_one_line_and_change_nothing(layout: RunLayout, root: Path, words, says) -> None:
    published = {p: p.read_bytes() for p in layout.run.rglob(manifest.NAME)}
    done = call(*words, root=root, expect=2)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert all(path.read_bytes() == content for path, content in published.items())


def test_shards_of_another_tokenizer_are_refused(layout: RunLayout, tmp_path: Path) -> None:
    shutil.copytree(layout.tokenizer, tmp_path / "tokenizer")
    shutil.copytree(layout.tokens, tmp_path / "tokens")
    saved = manifest.read(tmp_path / "tokens")
    assert saved is not None
    manifest.write(tmp_path / "tokens", dataclasses.replace(saved, inputs={**saved.inputs, "tokenizer": "other"}))
    done = call("launch", "local", "pretrain", f"data.root={tmp_path}", root=tmp_path, expect=2)
    assert "made with a different tokenizer" in done.stderr
    assert done.stderr.count("\n") == 1


# Fifteen seconds: two torchrun agents at once, then the same run with one.
def test_two_nodes_meet_over_c10d(layout: RunLayout, tmp_path: Path) -> None:
    """Two launches with one worker each, as on two nodes, give the same run as two workers on one node."""
    overrides = [f"run.root={tmp_path}", f"data.root={layout.data}", "train.steps=6", "launch.processes=1"]
    overrides += ["launch.nodes=2", f"launch.rendezvous=127.0.0.1:{free_port()}"]
    argv = [sys.executable, "-m", "launch", "torchrun", "pretrain", "--recipe", str(RECIPE), *overrides]
    nodes = [
        subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outs = [node.communicate(timeout=PATIENCE)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outs)
    single = ("run.name=one-node", f"data.root={layout.data}", "train.steps=6")
    call("launch", "local", "pretrain", *single, root=tmp_path)

    def losses(name: str) -> list[float]:
        return [r["loss"] for r in read_records(tmp_path / name / "pretrain" / "metrics.jsonl") if r["kind"] == "train"]

    assert losses("end-to-end") == losses("one-node")


def test_dry_run_prints_the_command_and_starts_nothing(tmp_path: Path) -> None:
    words = ("launch", "torchrun", "pretrain", "launch.nodes=4", "launch.rendezvous=head:29500", "launch.processes=8")
    more = ("model.n_routed_experts=32", "train.global_batch_tokens=8192", "finetune.batch_examples=32")
    argv = [sys.executable, "-m", *words[:3], "--recipe", str(RECIPE), "--dry-run", f"run.root={tmp_path}", *words[3:]]
    done = subprocess.run([*argv, *more], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("torch.distributed.run", "--nnodes=4", "--nproc-per-node=8", "--rdzv-backend=c10d", "SIGUSR1",
                 "--rdzv-endpoint=head:29500", "training pretrain"):  # fmt: skip
        assert part in done.stdout
    assert not list(tmp_path.iterdir())
