"""Records for chat examples: the files they are in, their formats, and records that are unusable."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.schema.examples import ExamplesSection
from pipeline.examples import chat
from pipeline.examples.rendering import Losses
from pipeline.sources.bad_inputs import BadInputs
from tests.support.pipeline.corpora import RECIPE, packed

_TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}]
_ANSWER = {"role": "assistant", "content": "Hello."}
_CHAT = [*_TURNS, _ANSWER]
_PLAIN = [{"role": "user", "content": "Hi."}, _ANSWER]

#: Format -> a record, the messages that it becomes, and the description of the file.
_RECORDS = {
    "alpaca": (
        {"instruction": "Hi.", "input": "", "output": "Hello.", "system": "Be kind."},
        _CHAT,
        "Alpaca records (instruction, input, output, system)",
    ),
    "messages": ({"messages": [{**message, "name": None} for message in _CHAT]}, _CHAT, "messages (messages)"),
    "sharegpt": (
        {
            "id": 1,
            "system": "Be kind.",
            "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}],
        },
        _CHAT,
        "ShareGPT conversations (conversations, system)",
    ),
    "prompt_completion": (
        {"prompt": "Hi.", "completion": "Hello."},
        _PLAIN,
        "prompts and completions (prompt, completion)",
    ),
    "question_answer": ({"question": "Hi.", "answer": "Hello."}, _PLAIN, "questions and answers (question, answer)"),
    "text": ({"text": "Hello."}, [], "plain texts (text)"),
    "preference": (
        {"prompt": "Hi.", "chosen": "Hello.", "rejected": "No."},
        _PLAIN,
        "preferences (prompt, chosen, rejected), of which only the chosen answers are learned",
    ),
}


def _section(path, **keys):
    return ExamplesSection(**{"kind": "files", "path": str(path), **keys})


def _read(path, preferences=False, **keys):
    """Read examples. Returns them, the unusable records, and what was kept of those."""
    bad, losses = BadInputs(hints={}), Losses()
    return chat.read(_section(path, **keys), preferences, str.strip, bad, losses), bad, losses


def _write(folder, *records, name="a.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def _csv(records):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, records[0].keys())
    writer.writeheader()
    for record in records:
        writer.writerow({name: v if isinstance(v, str) else json.dumps(v) for name, v in record.items()})
    return stream.getvalue().encode()


def _table(records):
    sink = pyarrow.BufferOutputStream()
    wide = [{**record, "embedding": [0.5] * 4, "empty": None} for record in records]
    parquet.write_table(pyarrow.Table.from_pylist(wide), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", _RECORDS)
def test_every_format_from_every_kind_of_file(tmp_path, capsys, name):
    record, messages, description = _RECORDS[name]
    lines = "".join(json.dumps(record) + "\n" for _ in range(5)).encode()
    contents = {
        "a.jsonl": lines,
        "a.ndjson.gz": packed(lines, "a.gz"),
        "a.json": json.dumps([record] * 5, indent=1).encode(),
        "a.json.zst": packed(json.dumps([record] * 5).encode(), "a.zst"),
        "a.csv": _csv([record] * 5),
        "a.tsv.xz": packed(_csv([record] * 5).replace(b",", b"\t"), "a.xz"),
        "a.parquet": _table([record] * 5),
    }
    if name in ("messages", "sharegpt"):
        # A list in CSV is JSON, which contains commas.
        del contents["a.tsv.xz"]
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
        examples, bad, _ = _read(tmp_path / file)
        assert len(examples) == bad.good == 5 and not bad.reasons, file
        assert {str(example.messages) for example in examples} == {str(messages)}, file
        assert {example.answer for example in examples} == {"Hello."} and len({e.source for e in examples}) == 5
        assert capsys.readouterr().out == f"examples: {description}\n"
        assert _read(tmp_path / file, format=name)[0] == examples
        capsys.readouterr()
        (tmp_path / file).unlink()


def test_a_dataset_repository(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for number in range(2):
        rows = [{"messages": [{**m, "content": f"{m['content']} {number} {n}"} for m in _CHAT]} for n in range(70)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"train-{number}-of-2.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / "data" / f"test-{number}-of-2.parquet")
    examples, bad, _ = _read(tmp_path, kind="hub")
    assert [example.answer for example in examples] == [
        f"Hello. {number} {n}" for number in range(2) for n in range(70)
    ]
    assert bad.good == 140 and examples[0].source == "data/train-0-of-2.parquet row 0"
    assert capsys.readouterr().out == "examples: messages (messages)\n"
    assert len(_read(tmp_path, kind="hub", split="test")[0]) == 6
    with pytest.raises(RequestError, match=r"finetune.examples.path: .*nowhere"):
        _read(tmp_path, kind="hub", split="nowhere")


def test_mapped_fields(tmp_path, capsys):
    path = _write(tmp_path, *[{"question": f"Q{n}", "reply": f"A{n}", "persona": "Be brief."} for n in range(3)])
    examples, _, _ = _read(path, fields={"prompt": "question", "answer": "reply"})
    assert [(example.question, example.answer) for example in examples] == [(f"Q{n}", f"A{n}") for n in range(3)]
    assert capsys.readouterr().out == "examples: questions and answers (question, reply)\n"
    examples, _, _ = _read(path, fields={"answer": "reply", "system": "persona"}, format="question_answer")
    assert examples[0].messages[0] == {"role": "system", "content": "Be brief."}
    path = _write(tmp_path, {"dialog": [{"who": "user", "says": "Hi."}, {"who": "assistant", "says": "Hello."}]})
    fields = {"messages": "dialog", "role": "who", "content": "says"}
    assert _read(path, fields=fields)[0][0].messages == _PLAIN


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"a.jsonl have no known format; their fields are: ask, reply: map them with finetune.examples.fields"),
        ({"format": "alpaca"}, r"format=alpaca needs instruction and output, but a.jsonl has the fields ask, reply"),
        ({"fields": {"answer": "repl"}}, r"fields: a.jsonl has no field 'repl'; .*: ask, reply; did you mean reply\?"),
        ({"fields": {"text": "reply", "prompt": "ask"}}, r"no format has all of the roles text, prompt"),
        ({"fields": {"text": "ask"}, "format": "alpaca"}, r"format=alpaca has the roles .*but not all of text"),
    ],
)
def test_fields_that_do_not_fit_are_refused_with_those_in_the_file(tmp_path, keys, message):
    path = _write(tmp_path, {"ask": "Q", "reply": "A"})
    with pytest.raises(RequestError, match=message):
        _read(path, **keys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{kind: instructions, path: a}", "kind=instructions is now called files: set kind=files"),
        ("{kind: files}", "path is missing: kind=files"),
        ("{path: a}", "not read by the default, kind=pydocs: set kind=files or kind=hub"),
        ("{kind: files, path: a, fields: {promt: b}}", "promt is not a role of a field: the roles are answer, "),
        ("{kind: files, path: a, fields: {prompt: b, question: c}}", "prompt and another name stand for the same role"),
        ("{kind: files, path: a, split: test}", r"split \(test\) is read only by kind=hub, not by kind=files"),
        ("{format: text}", r"format \(text\) is read only by kind=files and kind=hub, not by kind=pydocs"),
    ],
)
def test_keys_that_are_wrong_in_any_file(override, message):
    with pytest.raises(RequestError, match=message):
        load_recipe(RECIPE, [f"finetune.examples={override}"])


def test_a_file_that_mixes_formats(tmp_path, capsys):
    records = [{"instruction": f"Do {n}.", "output": "Done."} for n in range(9)]
    others = [{"conversations": [{"from": "human", "value": "Hi."}]}, {"text": "Hello."}, {"body": "Hello."}]
    path = _write(tmp_path, *records, *others)
    examples, bad, losses = _read(path)
    assert len(examples) == 9 and capsys.readouterr().out == "examples: Alpaca records (instruction, output)\n"
    of_another = "of another format than the file's Alpaca records: "
    assert bad.reasons == {
        f"{of_another}ShareGPT conversations (its fields: conversations)": 1,
        f"{of_another}plain texts (its fields: text)": 1,
        "without instruction and output (its fields: body)": 1,
    }
    assert [(kept.id, json.loads(kept.text)) for kept in losses.rejected] == [
        (f"a.jsonl line {number}", record) for number, record in enumerate(others, 10)
    ]
    # Another format of the same records is a choice.
    assert len(_read(path, format="text")[0]) == 1


def _chat(*roles_and_texts):
    return {"messages": [{"role": role, "content": text} for role, text in roles_and_texts]}


_U, _A = ("user", "Hi."), ("assistant", "Hello.")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (_chat(_U), "no assistant message to learn from"),
        (_chat(_U, _U, _A), "roles out of order: two user messages in a row"),
        (_chat(_U, _A, _A), "roles out of order: two assistant messages in a row"),
        (_chat(_A, _U, _A), "roles out of order: the assistant begins"),
        (_chat(("system", "Be."), _A), "roles out of order: the assistant begins"),
        (_chat(_U, _A, ("system", "Be."), _U, _A), "roles out of order: a system message after the beginning"),
        (_chat(_U, ("assistant", " ")), "an empty answer"),
        (_chat(("user", ""), _A), "an empty user message"),
        (_chat(_U, ("tool", "x"), _A), "a role other than system, user, assistant"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "Hi."}, "messages is not a list of objects"),
        (
            _chat(_U, ("assistant", [{"type": "image_url"}])),
            "a message's content has a part of type image_url, not only text",
        ),
        ({"prompt": "Hi.", "completion": " "}, "completion is empty"),
        ({"text": ""}, "text is empty"),
    ],
)
def test_unusable_records_are_counted_by_reason(tmp_path, record, reason):
    examples, bad, losses = _read(_write(tmp_path, record))
    assert not examples and bad.reasons == {reason: 1} and losses.rejected[0].reason == reason


def test_conversations_are_read_as_people_mean_them(tmp_path):
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    path = _write(
        tmp_path,
        _chat(("system", ""), _U, _A, ("user", "Bye.")),
        _chat(("developer", "Be brief."), ("user", parts), ("assistant", parts)),
    )
    first, second = _read(path)[0]
    # A last question without an answer teaches nothing.
    assert first.messages == _PLAIN
    assert second.messages[0] == {"role": "system", "content": "Be brief."}
    assert second.question == second.answer == "One.\nTwo."


_HI = {"role": "user", "content": "Hi."}
_NO = {"role": "assistant", "content": "No."}
_PAIRS = {
    "texts": {"prompt": "Hi.", "chosen": "Hello.", "rejected": "No."},
    "messages": {"prompt": [_HI], "chosen": [_ANSWER], "rejected": [_NO]},
    "complete": {"chosen": [_HI, _ANSWER], "rejected": [_HI, _NO]},
    "both": {"prompt": "Hi.", "chosen": [_HI, _ANSWER], "rejected": [_HI, _NO]},
    "system": {"system": "Be.", "prompt": "Hi.", "chosen": "Hello.", "rejected": "No."},
}


@pytest.mark.parametrize("name", _PAIRS)
def test_preferences(tmp_path, capsys, name):
    (example,) = _read(_write(tmp_path, _PAIRS[name]), preferences=True)[0]
    system = [{"role": "system", "content": "Be."}] if name == "system" else []
    assert example.messages == [*system, _HI, _ANSWER] and example.rejected == [*system, _HI, _NO]
    assert example.prompt == len(system) + 1 and (example.question, example.answer) == ("Hi.", "Hello.")
    assert "only the chosen" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Hi.", "chosen": "No.", "rejected": "No. "}, "chosen equal to rejected"),
        ({"chosen": [_HI, _ANSWER], "rejected": [{**_HI, "content": "Ho."}, _NO]}, "without a common prompt"),
        ({"prompt": "Hi.", "chosen": "", "rejected": "No."}, "chosen is empty"),
        ({"chosen": "Yes.", "rejected": "No."}, "roles out of order: the assistant begins"),
        ({"prompt": "Hi.", "chosen": "Yes.", "rejected": 7}, "rejected is a number, not text"),
    ],
)
def test_unusable_preferences(tmp_path, record, reason):
    examples, bad, _ = _read(_write(tmp_path, record), preferences=True)
    assert not examples and len(bad.reasons) == 1 and reason in next(iter(bad.reasons))


def test_damage_and_lines_that_are_no_records_are_counted(tmp_path):
    line = json.dumps({"question": "Q", "answer": "A"}).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\n\n{broken\n" + line[:-1] + b', "x": NaN}\n"\xff"\n')
    (tmp_path / "b.csv").write_bytes(b'question,answer\nQ,A\n"Q\n"\nQ,A,B\nQ\n\xff,A\n')
    (tmp_path / "c.parquet").write_bytes(_table([{"question": "Q", "answer": "A"}])[:-20])
    (tmp_path / "d.json").write_text("[1, 2")
    (tmp_path / "e.jsonl").write_bytes(_table([{"question": "Q", "answer": "A"}]))
    examples, bad, _ = _read(tmp_path)
    assert len(examples) == bad.good == 3
    assert bad.reasons == {
        "malformed line": 1,
        "invalid UTF-8": 2,
        "a record with too many fields": 1,
        "a record with too few fields": 2,
        "unreadable file": 1,
        "malformed JSON array": 1,
        "the file is parquet": 1,
    }
