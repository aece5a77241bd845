"""Chat examples: their sources, how records are read, what is dropped, and that the split reveals no answers."""

import json
import shutil

import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from configs.schema.examples import ExamplesSection
from pipeline.document import Document
from pipeline.documents import stage as documents
from pipeline.examples import chat, rendering
from pipeline.examples.pydocs_questions import HELD_OUT, NO_SENTENCE, PRIVATE, REPEATED, answer, questions
from pipeline.sources.bad_inputs import BadInputs
from pipeline.tokens import stage as tokens
from tests.support.paths import SHARED_DATA
from tests.support.pipeline.corpora import digests, of_jsonl, recipe, texts, write_jsonl
from tokenizer.chat_template import IGNORED
from tokenizer.registry import load_tokenizer
from tokenizer.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the documentation of a few small packages, with its examples."""
    root = tmp_path_factory.mktemp("examples")
    run_recipe = recipe(
        root, "data.source.packages=[json, logging, asyncio, posixpath]", "finetune.examples.max_examples=null"
    )
    documents.build(run_recipe)
    train(run_recipe)
    tokens.build(run_recipe)
    return run_recipe, build_examples(run_recipe)


def build_examples(recipe):
    return chat.build(recipe, recipe.finetune[0])


def _sides(recipe):
    folder = RunLayout.of(recipe).examples_of("sft")
    return [parquet.read_table(folder / f"{name}-00000.parquet").to_pylist() for name in ("train", "held-out")]


def test_columns_and_labels(run):
    recipe, published = run
    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    train_side, held_side = _sides(recipe)
    assert published.counts["train"]["examples"] == len(train_side) > 50
    assert published.counts["held_out"]["examples"] == len(held_side) > 0
    for row in train_side + held_side:
        assert list(row) == ["ids", "labels", "source", "question", "answer"]
        assert len(row["ids"]) == len(row["labels"]) <= recipe.finetune[0].max_length
        learned = [label for label in row["labels"] if label != IGNORED]
        assert tokenizer.decode(learned, show_special=True) == row["answer"] + "<|end|>"
        assert row["question"] in tokenizer.decode(row["ids"])
    learned = sum(label != IGNORED for row in train_side for label in row["labels"])
    assert published.counts["train"]["target_tokens"] == learned


def test_no_answer_on_both_sides_and_none_from_validation_documents(run):
    recipe, published = run
    train_side, held_side = _sides(recipe)
    assert not {row["answer"] for row in train_side} & {row["answer"] for row in held_side}
    validation = parquet.read_table(RunLayout.of(recipe).tokens / "validation.parquet")["id"].to_pylist()
    assert validation and not set(validation) & {row["source"] for row in train_side + held_side}
    assert published.counts["dropped"][HELD_OUT] > 0


def test_documents_of_a_source_with_a_name_are_held_out_too(tmp_path):
    run_recipe = recipe(
        tmp_path,
        "data.source={}",
        "data.sources={docs: {kind: pydocs, packages: [json, logging, posixpath]}}",
        "data.tokens.validation_fraction=0.2",
        "finetune.examples.max_examples=null",
    )
    documents.build(run_recipe)
    train(run_recipe)
    tokens.build(run_recipe)
    published = build_examples(run_recipe)
    held_out = set(parquet.read_table(RunLayout.of(run_recipe).tokens / "validation.parquet")["id"].to_pylist())
    assert held_out and all(identifier.startswith("docs:pydocs:") for identifier in held_out)
    train_side, held_side = _sides(run_recipe)
    assert not held_out & {f"docs:{row['source']}" for row in train_side + held_side}
    assert published.counts["dropped"][HELD_OUT] > 0


def test_the_same_bytes_again(run, tmp_path):
    run_recipe, _ = run
    other = recipe(tmp_path, f"data.root={RunLayout.of(run_recipe).data}", "finetune.examples.max_examples=null")
    other = other.model_copy(update={"data": other.data.model_copy(update={"source": run_recipe.data.source})})
    build_examples(other)
    assert digests(RunLayout.of(other).examples_of("sft")) == digests(RunLayout.of(run_recipe).examples_of("sft"))
    assert build_examples(run_recipe) is None


def _function(name, doc):
    return Document(f"pydocs:{name}", f"{name}(x)\n\n{doc}", "pydocs", "function")


def test_questions_about_functions():
    functions = [
        _function("a.join", "Join the parts\nof a path. And more."),
        _function("a.Path.join", "Join the parts of this path."),
        _function("b.join", "Join the parts of a path."),
        _function("a._hidden", "Hide something from everyone."),
        _function("a.held", "Say something of its own."),
        _function("c.same", "Say something of its own."),
        _function("a.poor", "see join"),
        Document("pydocs:a", "a\n\nA module with a sentence.", "pydocs", "module"),
    ]
    dropped = {}
    pairs = list(questions(functions, frozenset({"pydocs:a.held"}), 1, dropped))
    assert [(one.source, one.answer) for one in pairs] == [
        ("pydocs:a.join", "Join the parts of a path."),
        ("pydocs:a.Path.join", "Join the parts of this path."),
    ]
    assert "a.join" in pairs[0].question
    assert dropped == {REPEATED: 1, PRIVATE: 1, HELD_OUT: 2, NO_SENTENCE: 1}


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return the :class:`~a.B` of ``x`` as text.", "Return the a.B of x as text."),
        ("Return version 1.5 of the text. More.", "Return version 1.5 of the text."),
        ("no capital letter here at all.", None),
        ("Too short.", None),
        ("No end to this sentence\n\nReally.", None),
        ("See https://example.org for what it does.", None),
        ("Deprecated alias for something else.", None),
    ],
)
def test_fit_answers(doc, sentence):
    assert answer(f"f(x)\n\n{doc}") == sentence


def _instructed(root, content, *overrides, name="made.jsonl"):
    (root / name).write_text(content, encoding="utf-8")
    return _over(root, root / name, *overrides)


def _over(root, path, *overrides):
    more = ["finetune.examples.kind=files", f"finetune.examples.path={path}", *overrides]
    recipe = of_jsonl(root, write_jsonl(root / "a.jsonl", texts(30)), *more)
    documents.build(recipe)
    train(recipe)
    return recipe


def test_instructions_and_messages(tmp_path, capsys):
    records = [{"instruction": f"Count to {n}.", "input": "now" if n % 2 else "", "output": f"{n}!"} for n in range(40)]
    turns = [
        ("system", "Be kind."),
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "Bye."),
        ("assistant", "Later."),
    ]
    records.append(records[0])
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "alpaca.jsonl").write_text("\n".join(map(json.dumps, records)))
    messages = [{"role": role, "content": content} for role, content in turns]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    recipe = _over(tmp_path, folder)
    published = build_examples(recipe)
    assert capsys.readouterr().out.endswith(
        "examples: Alpaca records (instruction, input, output) in alpaca.jsonl\n"
        "examples: messages (messages) in chat.jsonl\n"
    )
    assert published.counts["candidates"] == 42 and published.counts["dropped"] == {chat.REPEATED: 1}
    rows = [row for side in _sides(recipe) for row in side]
    assert len(rows) == 41
    assert {"Count to 1.\n\nnow", "Count to 2.", "Bye."} <= {row["question"] for row in rows}
    conversation = next(row for row in rows if row["question"] == "Bye.")
    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    learned = [label for label in conversation["labels"] if label != IGNORED]
    assert tokenizer.decode(learned, show_special=True) == "Hello.<|end|>Later.<|end|>"


def test_long_examples_are_left_out_and_the_rest_sampled(tmp_path):
    records = [{"instruction": f"Say {n}.", "output": f"Number {n}. " * (30 if n < 5 else 1)} for n in range(60)]
    recipe = _instructed(tmp_path, json.dumps(records), "finetune.examples.max_examples=20", name="made.json")
    published = build_examples(recipe)
    assert published.counts["dropped"] == {rendering.TOO_LONG: 5, chat.NOT_SAMPLED: 35}
    assert published.counts["train"]["examples"] + published.counts["held_out"]["examples"] == 20


def test_bad_records_are_counted_and_too_many_refused(tmp_path):
    good = [json.dumps({"instruction": f"Do {n}.", "output": f"Done {n}."}) for n in range(10)]
    bad = ['{"prompt": "x", "reply": "y"}', "{broken", '{"messages": [{"role": "tool", "content": "x"}]}']
    with pytest.raises(RequestError, match=r"3 of 13 inputs .*its fields: prompt, reply.*of finetune.examples.path"):
        build_examples(_instructed(tmp_path, "\n".join(good + bad)))
    recipe = _instructed(tmp_path, "\n".join(good + bad), "data.max_bad_fraction=0.5")
    assert sum(build_examples(recipe).counts["bad_inputs"].values()) == 3


def test_lone_surrogates_are_counted_as_bad(tmp_path):
    records = [json.dumps({"instruction": f"Do {n}.", "output": f"Done {n}."}) for n in range(10)]
    records.append('{"instruction": "Say it \\ud800.", "output": "Said."}')
    records.append('{"instruction": "Say", "output": "\\udfff", "\\ud800": 1}')
    records.append('{"\\ud801": 1}')
    published = build_examples(_instructed(tmp_path, "\n".join(records), "data.max_bad_fraction=0.5"))
    assert published.counts["candidates"] == 10 and sorted(published.counts["bad_inputs"].values()) == [1, 2]


def test_messages_are_normalized_as_documents_are(tmp_path):
    records = [
        {"instruction": f"Do\r\ne\u0301 {n}.\x00\n", "input": " \r", "output": f"A\x0bB\u0301 {n}.\r\n"}
        for n in range(8)
    ]
    more = {"system": "Be\x85kind.\n", "instruction": "Hi\x07.", "output": "e\u0301\u2028f "}
    records.append(more)
    records.append({"instruction": "\x00", "output": "Nothing is asked."})
    recipe = _instructed(tmp_path, "\n".join(map(json.dumps, records)), "data.max_bad_fraction=0.2")
    published = build_examples(recipe)
    assert published.counts["bad_inputs"] == {"instruction is empty": 1}
    rows = {row["question"]: row for side in _sides(recipe) for row in side}
    assert rows["Do\né 3."]["answer"] == "A\nB\u0301 3." and rows["Hi."]["answer"] == "é\nf"
    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    assert "Be\nkind." in tokenizer.decode(rows["Hi."]["ids"]) and "Do\né 3." in tokenizer.decode(
        rows["Do\né 3."]["ids"]
    )
    other = _instructed(
        tmp_path, "\n".join(map(json.dumps, records)), "data.max_bad_fraction=0.2", "data.clean.unicode=none"
    )
    assert build_examples(other) is not None
    assert "Do\ne\u0301 3." in {row["question"] for side in _sides(other) for row in side}


def _read(tmp_path, *records, **keys):
    """The examples in a file, and its unusable records."""
    path = tmp_path / "made.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    bad = BadInputs()
    section = ExamplesSection(kind="files", path=str(path), **keys)
    return chat.read(section, False, str, bad, rendering.Losses()), bad


def test_null_counts_as_a_missing_field(tmp_path):
    fields = {"input": None, "system": None, "messages": None}
    turns = [{"role": role, "content": f"I am the {role}.", "name": None} for role in ("user", "assistant")]
    of_chat = {"instruction": None, "input": None, "output": None, "messages": turns}
    for records in (
        [{"instruction": f"Do {n}.", "output": f"Done {n}.", **fields} for n in range(9)],
        [of_chat] * 9,
    ):
        examples, bad = _read(tmp_path, *records)
        assert len(examples) == 9 and not bad.reasons
        assert examples[3].question in ("Do 3.", "I am the user.")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": None, "output": "x"}, "instruction is null"),
        ({"instruction": "x", "output": None}, "output is null"),
        ({"instruction": "x", "output": 7}, "output is a number, not text"),
        ({"instruction": "x", "output": [{"text": "y"}]}, "output is a list, not text"),
        ({"question": [{"text": "x"}], "answer": "y"}, "question is a list, not text"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "input is a list, not text"),
        ({"messages": [{"role": "user", "content": None}]}, "a message's content is null"),
        ({"messages": [{"role": "user"}]}, "a message's content is missing"),
        ({"messages": [{"role": None, "content": "x"}]}, "a message's role is null"),
        ({"messages": [{"role": "assistant", "content": True}]}, "a message's content is true or false, not text"),
    ],
)
def test_values_that_are_not_text_are_named(tmp_path, record, reason):
    examples, bad = _read(tmp_path, record)
    assert not examples and bad.reasons == {reason: 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("made.csv", "instruction;output\nDo it.;Done.\n", "a single column, 'instruction;output': is ';' its"),
        ("made.txt", "instruction,output\nDo it.,Done.\n", "malformed line: 2 .*: use JSON Lines"),
        ("made.jsonl", "1\n2\n", "not a JSON object: 2 .*: use JSON Lines"),
        ("made.jsonl", "\n", "has no records: use JSON Lines"),
        (
            "made.jsonl",
            json.dumps({"instruction": "Do it.", "output": "Done."}),
            "only one chat example is left; .*: add records to finetune.examples.path$",
        ),
        (
            "made.jsonl",
            (json.dumps({"instruction": "Do it.", "output": "Done." * 400}) + "\n") * 2,
            r"no chat example is left \(dropped: 1 longer than finetune.max_length, 1 .* or raise finetune.max_length$",
        ),
    ],
)
def test_errors_name_the_keys_of_examples_and_leave_no_files(tmp_path, name, content, message):
    recipe = _instructed(tmp_path, content, name=name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=message) as refused:
        build_examples(recipe)
    assert "data.source" not in str(refused.value) and "{}" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_about_the_requested_fraction_of_labels_is_held_out(tmp_path, capsys):
    labels = ("positive", "negative")
    records = [{"instruction": f"Is review {n} kind?", "output": labels[n % 2]} for n in range(200)]
    published = build_examples(recipe := _instructed(tmp_path, json.dumps(records), name="made.json"))
    assert published.counts["held_out"]["examples"] == 10 and "finetune.examples" not in capsys.readouterr().err
    assert {row["answer"] for row in _sides(recipe)[0]} == {*labels}
    records = [{"instruction": "Write a haiku.", "output": f"Haiku {n}."} for n in range(20)]
    build_examples(recipe := _instructed(tmp_path, json.dumps(records), name="made.json"))
    assert "held-out examples (1) share a question with training examples" in capsys.readouterr().err
    assert [len(side) for side in _sides(recipe)] == [19, 1]


def test_a_damaged_list_of_validation_documents_is_named(run, tmp_path):
    run_recipe, _ = run
    shutil.copytree(RunLayout.of(run_recipe).run, tmp_path / "demo")
    other = recipe(tmp_path, "data.source.packages=[json, logging, asyncio, posixpath]", "finetune.max_length=100")
    shutil.copytree(run_recipe.run.root + "/.cache", tmp_path / ".cache")
    path = RunLayout.of(other).tokens / "validation.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RequestError, match=rf"{path}: .*; repair: rm -r {path.parent} && make data"):
        build_examples(other)


def test_a_missing_file_is_named_by_its_key(tmp_path):
    with pytest.raises(RequestError, match=r"finetune.examples.path: .* is neither a file nor a folder"):
        build_examples(_over(tmp_path, tmp_path / "nowhere.json"))


def test_real_instructions(tmp_path):
    path = SHARED_DATA / "instructions.json"
    if not path.exists():
        pytest.skip("no instructions.json next to the checkout")
    published = build_examples(_over(tmp_path, path, "finetune.examples.max_examples=null", "finetune.max_length=512"))
    assert published.counts["candidates"] == 1100 and 50 <= published.counts["held_out"]["examples"] <= 55
