"""The commands as a user runs them: complete runs, damage, kills, and the cost of having nothing to do."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from artefacts import atomic, manifest
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.reports.stats import stats
from pipeline.reports.verify import verify
from pipeline.tokens import stage as tokens
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, digests, of_jsonl, overrides, recipe, texts, write_jsonl
from tests.support.waiting import PATIENCE, wait_until
from tokenizer.train import train


def _line(verb, root, source, *more):
    options = overrides(
        root, "data.source.kind=jsonl", f"data.source.path={source}", "data.tokens.shard_tokens=60000", *more
    )
    return [sys.executable, "-m", "pipeline", verb, "--recipe", str(RECIPE), *options]


def _command(*arguments):
    return subprocess.run(_line(*arguments), cwd=CHECKOUT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight files, so that the documents stage has eight parts."""
    folder = tmp_path_factory.mktemp("source")
    corpus = texts(1600)
    for number in range(8):
        write_jsonl(folder / f"{number}.jsonl", corpus[number * 200 : number * 200 + 200])
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    root = tmp_path_factory.mktemp("finished")
    done = _command("run", root, source)
    assert done.returncode == 0, done.stderr
    return root


def _data(root):
    artefacts = digests(root / "demo")
    return {name: digest for name, digest in artefacts.items() if not name.startswith(".") and name != "data.html"}


def test_a_finished_run_is_up_to_date(finished, source):
    before = _data(finished)
    again = _command("run", finished, source)
    assert again.stdout.count("up to date") == 3 and again.returncode == 0
    assert _data(finished) == before


def test_an_up_to_date_run_imports_nothing_heavy(finished, source):
    code = (
        "import sys; from pipeline.__main__ import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'sentencepiece', 'zstandard') if m in sys.modules])"
    )
    line = [sys.executable, "-c", code, *_line("run", finished, source)[3:]]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_nothing_imports_torch(finished, source, tmp_path):
    code = (
        "import sys; from pipeline.__main__ import main; main(sys.argv[1:]); "
        "import pipeline.examples.chat, tokenizer.chat_template; assert 'torch' not in sys.modules"
    )
    line = [sys.executable, "-c", code, *_line("run", tmp_path, source / "0.jsonl")[3:]]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stats(finished, source):
    shown = _command("stats", finished, source)
    assert shown.returncode == 0 and "train: tokens" in shown.stdout and "bytes per token" in shown.stdout
    page = (finished / "demo" / "data.html").read_text()
    labels = (
        "document lengths",
        "Nothing was dropped",
        "tokens per document",
        "how often pieces are used",
        "Never used",
    )
    assert all(label in page for label in labels)
    assert re.search(r"<td[^>]*>\\n</td>", page), "a line break among the most frequent pieces is to be seen"
    assert "bytes per token by document" in page and "http" not in page.replace("http-equiv", "")


def test_the_stats_of_several_sources(tmp_path):
    corpus = texts(120)
    a, b = write_jsonl(tmp_path / "a.jsonl", corpus[:40]), write_jsonl(tmp_path / "b.jsonl", corpus[40:])
    sources = f"data.sources={{web: {{kind: jsonl, path: {a}}}, books: {{kind: jsonl, path: {b}}}}}"
    run_recipe = recipe(tmp_path, "data.source={}", sources)
    documents.build(run_recipe)
    train(run_recipe)
    tokens.build(run_recipe)
    lines, page = stats(run_recipe)
    shown = page.read_text()
    assert "books" in shown and "web" in shown and shown.count("<td>total</td>") == 1
    heads = [line.split() for line in lines if line.endswith("total")]
    assert heads == [["books", "web", "total"]] * 2 and not any("sources" in line for line in lines)
    (tokens_line,) = [line for line in lines if line.startswith("  train: tokens")]
    books, web, total = (int(figure.replace(",", "")) for figure in tokens_line.split()[2:])
    assert books > 1.5 * web and books + web == total
    heading = r"Bytes per token of the first (\d+) training documents of books and (\d+) training documents of web"
    ((of_books, of_web),) = re.findall(heading, shown)
    assert 70 < int(of_books) <= 80 and 30 < int(of_web) <= 40


def test_verify_names_a_flipped_byte_and_its_fix(finished, source):
    assert _command("verify", finished, source).returncode == 0
    path = finished / "demo" / "tokens" / "train-00001.bin"
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    try:
        done = _command("verify", finished, source)
    finally:
        path.write_bytes(content)
    assert done.returncode == 1
    assert "train-00001.bin: content does not match" in done.stderr and "make data RECIPE=" in done.stderr
    assert "documents: intact" in done.stdout


def test_verify_checks_checkpoints_and_the_evaluation(tmp_path):
    recipe = of_jsonl(tmp_path, tmp_path / "a.jsonl")
    layout = RunLayout.of(recipe)

    def write_artefact(folder, details, *names):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("content")
        files = manifest.describe_files(folder) if names else {}
        manifest.write(folder, manifest.Manifest("thing", {}, {}, {}, {}, files, details))

    checkpoints = [layout.pretrain / "checkpoints" / f"step-{step:08d}" for step in (1, 2)]
    for folder in checkpoints:
        write_artefact(folder, {}, "weights.pt")
    manifest.write(
        layout.pretrain,
        manifest.Manifest("pretrain", {}, {}, {}, {}, {}, {"checkpoint": checkpoints[1].name, "weights": "w"}),
    )
    write_artefact(layout.evaluation, {}, "evaluation.json")
    atomic.write_json(layout.pretrain / "identity.json", {"identity": {}, "inputs": {}})
    intact, faults = verify(recipe, "r.yaml")
    assert len(intact) == 3 and not faults
    (checkpoints[1] / "weights.pt").write_text("damaged")
    (layout.evaluation / "evaluation.json").unlink()
    intact, (evaluated, trained) = verify(recipe, "r.yaml")
    assert len(intact) == 1 and f"mv {checkpoints[1]} {checkpoints[1]}.damaged && make pretrain" in trained
    assert f"rm -r {layout.evaluation} && make evaluate RECIPE=r.yaml" in evaluated
    shutil.rmtree(checkpoints[1])
    assert f"{checkpoints[1]}: missing; repair: `make pretrain" in verify(recipe, "r.yaml")[1][1]
    (layout.pretrain / manifest.NAME).write_text("[]")
    assert "repair: `make pretrain RECIPE=r.yaml`, which restores it" in verify(recipe, "r.yaml")[1][1]


def test_verify_notices_an_evaluation_on_other_examples(tmp_path):
    recipe = of_jsonl(tmp_path, tmp_path / "a.jsonl")
    layout = RunLayout.of(recipe)
    for folder, inputs in ((layout.examples_of("sft"), {}), (layout.evaluation, {"examples of sft": "others"})):
        folder.mkdir(parents=True)
        manifest.write(folder, manifest.Manifest("thing", {}, inputs, {}, {}, {}, {}))
    (layout.examples / "stray.parquet").write_text("not a stage's folder")
    (fault,) = verify(recipe, "r.yaml")[1]
    assert f"built from a different examples artefact than {layout.examples / 'sft'}" in fault


def test_verify_notices_shards_of_another_tokenizer(finished, source, tmp_path):
    root = tmp_path / "run"
    subprocess.run(["cp", "-r", finished, root], check=True)
    line = [word if word != "pipeline" else "tokenizer" for word in _line("train", root, source)]
    subprocess.run([*line, "tokenizer.vocab_size=410"], cwd=CHECKOUT, check=True, capture_output=True)
    done = _command("verify", root, source)
    assert done.returncode == 1 and "built from a different tokenizer" in done.stderr


def test_user_errors_are_one_line(tmp_path):
    for verb in ("run", "tokenize", "verify", "stats"):
        done = _command(verb, tmp_path, tmp_path / "nowhere.jsonl")
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_it_with_one_line_and_the_same_command_resumes(finished, source, tmp_path, number, status):
    line = _line("run", tmp_path, source, "data.workers=2")
    process = subprocess.Popen(
        line, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until((tmp_path / "demo" / ".documents.partial" / "key").exists, "key of the folder")
    # To all processes, like a terminal on Ctrl-C, and like SLURM with its warning.
    process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    output = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == status and "Traceback" not in output, output
    assert ": run the same command " in output.splitlines()[-1]
    assert _command("run", tmp_path, source).returncode == 0
    assert _data(tmp_path) == _data(finished)


def test_a_tokenizer_of_another_recipe_is_not_used(finished, source):
    done = _command("tokenize", finished, source, "tokenizer.vocab_size=410")
    assert done.returncode == 2 and "was built with another recipe" in done.stderr


def test_ingest_alone_refuses_what_cannot_be_read(tmp_path, source):
    for more in ((), ("--limit", "50")):
        done = _command("ingest", tmp_path, source, "data.source.text_field=nothing", *more)
        assert done.returncode == 2 and "fields there: text" in done.stderr and "max_bad" not in done.stderr, done


@pytest.mark.parametrize(
    ("artefact", "name", "message"),
    [
        ("tokenizer", "tokenizer.model", "missing; repair: rm -r {0} && make tokenizer "),
        ("documents", "clean-00000.parquet", "the manifest says"),
        ("tokens", manifest.NAME, "damaged manifest"),
    ],
)
def test_a_damaged_artefact_is_not_up_to_date(finished, source, artefact, name, message):
    folder = finished / "demo" / artefact
    content = (folder / name).read_bytes()
    if name == "tokenizer.model":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-100])
    try:
        again = _command("run", finished, source)
        checked = _command("verify", finished, source)
    finally:
        (folder / name).write_bytes(content)
    (line,) = [line for line in again.stderr.splitlines() if line.startswith("error:")]
    assert (
        again.returncode == 2
        and message.format(folder) in line
        and re.search(rf"repair: (rm -r|mv) {folder}.* && make ", line)
    )
    assert line.removeprefix("error: ") in checked.stderr and "move the folder away" not in line + checked.stderr
    assert checked.returncode == 1
