"""Chat examples as they are published: long ones, templates, preferences, and what is kept for inspection."""

import pytest
import tokenizers
import yaml

from artefacts import manifest
from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.run_layout import RunLayout
from pipeline.__main__ import main
from pipeline.documents import stage as documents
from pipeline.examples import chat, rendering
from tests.support.pipeline.chat_examples import build_examples, example_options
from tests.support.pipeline.corpora import RECIPE, overrides, texts, write_jsonl
from tokenizer import chat_template
from tokenizer.chat_template import BUILT_IN, IGNORED
from tokenizer.registry import load_tokenizer
from tokenizer.train import train


@pytest.fixture(scope="module")
def tokenizer(root):
    return load_tokenizer(RunLayout.of(load_recipe(RECIPE, overrides(root))).tokenizer)


def _learned(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORED], show_special=True)


def _long_records():
    """Short records, and one whose answer is too long."""
    records = [{"prompt": f"Say number {n}.", "completion": f"Number {n}."} for n in range(8)]
    return [*records, {"prompt": "Count.", "completion": " ".join(map(str, range(100)))}]


@pytest.mark.parametrize("too_long", ["drop", "cut", "split"])
def test_long_answers(root, tokenizer, too_long):
    more = ("finetune.max_length=48", f"finetune.examples.too_long={too_long}")
    published, rows, kept, _ = build_examples(root, _long_records(), *more)
    reason = {"drop": rendering.TOO_LONG, "cut": rendering.CUT, "split": rendering.EXCHANGE_TOO_LONG}[too_long]
    assert [(row["reason"], row["text"][:16]) for row in kept] == [(reason, "user: Count.\nass")]
    assert all(len(row["ids"]) <= 48 for row in rows.values())
    if too_long == "cut":
        assert len(rows) == 9 and published.counts["dropped"] == {} and published.counts["altered"] == {reason: 1}
        (cut,) = [row for row in rows.values() if row["question"] == "Count."]
        assert len(cut["ids"]) == 48 and _learned(tokenizer, cut["labels"]).startswith("0 1 2 3")
    else:
        assert len(rows) == 8 and published.counts["dropped"] == {reason: 1} and published.counts["altered"] == {}


def test_nothing_to_learn_is_left_of_a_long_question(root):
    records = [*_long_records(), {"prompt": "Why? " * 60, "completion": "So."}]
    published, rows, kept, _ = build_examples(root, records, "finetune.max_length=48", "finetune.examples.too_long=cut")
    assert published.counts["dropped"] == {rendering.NOTHING_LEFT: 1} and len(rows) == 9 and len(kept) == 2


def test_conversations_are_split_between_turns(root, tokenizer):
    turns = [(f"Question {n}?", f"Answer {n}." + (" Long" * 60 if n == 3 else "")) for n in range(7)]
    messages = [{"role": "system", "content": "Be brief."}]
    for question, reply in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    others = [[{"role": "user", "content": f"Hi {n}."}, {"role": "assistant", "content": f"Ho {n}."}] for n in range(6)]
    records = [{"messages": conversation} for conversation in (messages, *others)]
    more = ("finetune.max_length=80", "finetune.examples.too_long=split")
    published, rows, kept, sides = build_examples(root, records, *more)
    parts = {source: row for source, row in rows.items() if ", part" in source}
    assert len(parts) > 2 and published.counts["altered"] == {rendering.SPLIT: 1}
    assert published.counts["dropped"] == {rendering.EXCHANGE_TOO_LONG: 1} and "Answer 3. Long" in kept[0]["text"]
    shown = [tokenizer.decode(row["ids"], show_special=True) for row in parts.values()]
    assert all(text.startswith("<|begin|><|system|>Be brief.<|end|><|user|>") for text in shown)
    # Every other exchange is in exactly one part, complete and in order.
    learned = "".join(_learned(tokenizer, row["labels"]) for row in parts.values())
    assert learned == "".join(f"Answer {n}.<|end|>" for n in range(7) if n != 3)
    # The parts of a conversation are on one side of the split.
    assert any(parts.keys() <= {row["source"] for row in side} for side in sides)


def test_plain_texts_are_learned_completely_and_split_anywhere(root, tokenizer):
    records = [{"text": text} for text in texts(6, seed=5, sentences=3)]
    records += [{"text": texts(1, seed=6, sentences=30)[0]}, {"text": "Short."}]
    more = ("finetune.max_length=300", "finetune.examples.too_long=split")
    _, rows, _, _ = build_examples(root, records, *more)
    short = next(row for row in rows.values() if row["answer"] == "Short.")
    assert short["ids"] == short["labels"] == [*tokenizer.encode("Short."), tokenizer.end_of_text_id]
    parts = [row for source, row in rows.items() if "line 7, part" in source]
    assert len(parts) > 2 and all(row["labels"] == row["ids"] for row in parts)
    # Joined at the token that they share, the parts are the text.
    joined = parts[0]["ids"] + [token for row in parts[1:] for token in row["ids"][1:]]
    assert joined == [*tokenizer.encode(records[6]["text"]), tokenizer.end_of_text_id]
    assert [row["ids"][0] for row in parts[1:]] == [row["ids"][-1] for row in parts[:-1]]


def test_templates_and_their_record(root, tokenizer, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    records = [{"instruction": f"Do {n}.", "output": f"Done {n}. <|endoftext|>"} for n in range(8)]
    records.append({**records[0], "system": "Be brief."})
    for name, stop in (("chatml", "<|end|>"), ("instruction", "<|endoftext|>"), (str(path), "<|endoftext|>")):
        published, rows, kept, _ = build_examples(root, records, f"finetune.examples.template={name}")
        first = next(row for row in rows.values() if row["question"] == "Do 1.")
        assert _learned(tokenizer, first["labels"]) == f"Done 1. <|endoftext|>{stop}"
        assert sum(tokenizer.is_reserved(token) for token in first["labels"] if token != IGNORED) == 1
        record = published.details["template"]
        assert record["source"] == BUILT_IN.get(name, path.read_text()) and record["stop_ids"] == sorted(
            chat_template.ChatTemplate(record["source"], tokenizer).stop_ids
        )
    assert [row["reason"] for row in kept] == ["refused by the template: no system messages"]
    options = example_options(root, records, f"finetune.examples.template={path}")
    recipe = load_recipe(RECIPE, options)
    assert chat.build(recipe, recipe.finetune[0]) is not None and chat.build(recipe, recipe.finetune[0]) is None
    # The content of the file counts, not its name.
    moved = path.rename(tmp_path / "moved.jinja")
    recipe = load_recipe(RECIPE, [*options, f"finetune.examples.template={moved}"])
    assert chat.build(recipe, recipe.finetune[0]) is None
    moved.write_text(moved.read_text().replace(": ", " - "))
    assert chat.build(recipe, recipe.finetune[0]) is not None
    with pytest.raises(RequestError, match="nowhere is neither millrace, chatml, instruction nor a file"):
        build_examples(root, records, "finetune.examples.template=nowhere")


def test_loss_on_all(root):
    _, rows, _, _ = build_examples(root, _long_records()[:8], "finetune.examples.loss_on=all")
    assert all(row["labels"] == row["ids"] for row in rows.values())


def _pairs():
    return [
        {"prompt": f"Say number {n}.", "chosen": f"Number {n}.", "rejected": f"I will not say {n}."} for n in range(12)
    ]


def test_preferences(root, tokenizer):
    history = [("user", "Hi."), ("assistant", "Hello."), ("user", "Bye?")]
    prompt = [{"role": role, "content": content} for role, content in history]
    answers = {
        side: [{"role": "assistant", "content": content}] for side, content in (("chosen", "Bye!"), ("rejected", "No."))
    }
    equal = {"prompt": "Hi.", "chosen": "Ho.", "rejected": "Ho."}
    records = [*_pairs(), {"prompt": prompt, **answers}, equal, _pairs()[0]]
    published, rows, kept, sides = build_examples(root, records, "finetune.method=dpo")
    assert list(next(iter(rows.values()))) == [
        "ids_chosen",
        "labels_chosen",
        "ids_rejected",
        "labels_rejected",
        "source",
        "question",
        "chosen",
        "rejected",
    ]
    assert published.counts["bad_inputs"] == {"chosen equal to rejected": 1}
    assert published.counts["dropped"] == {chat.REPEATED: 1} and len(rows) == 13
    assert sorted(row["reason"] for row in kept) == ["chosen equal to rejected", chat.REPEATED]
    row = next(row for row in rows.values() if row["question"] == "Bye?")
    # Only the last answer is preferred: the earlier one is the same on both sides.
    for side, content in (("chosen", "Bye!"), ("rejected", "No.")):
        assert _learned(tokenizer, row[f"labels_{side}"]) == f"{content}<|end|>" and row[side] == content
        shown = tokenizer.decode(row[f"ids_{side}"], show_special=True)
        assert shown.endswith(f"<|assistant|>Hello.<|end|><|user|>Bye?<|end|><|assistant|>{content}<|end|>")
    assert published.counts["train"]["tokens"] == sum(
        len(row[f"ids_{side}"]) for row in sides[0] for side in ("chosen", "rejected")
    )


def test_pairs_with_the_same_prompt_stay_on_one_side(root):
    pairs = _pairs() + [{**pair, "rejected": f"Another no to {n}."} for n, pair in enumerate(_pairs())]
    _, _, _, (train_side, held_out) = build_examples(root, pairs, "finetune.method=dpo")
    assert len(held_out) >= 2
    assert not {row["question"] for row in train_side} & {row["question"] for row in held_out}


def test_long_preferences_are_dropped_or_cut(root):
    long = {"prompt": "Count.", "chosen": "One.", "rejected": " ".join(map(str, range(100)))}
    shared = " ".join(map(str, range(60)))
    late = {"prompt": "Count on.", "chosen": f"{shared} and on.", "rejected": f"{shared} and off."}
    for too_long, rows_left, dropped in (
        ("drop", 12, {rendering.TOO_LONG: 2}),
        ("split", 12, {rendering.TOO_LONG: 2}),
        ("cut", 13, {rendering.NOTHING_LEFT: 1}),
    ):
        more = ("finetune.method=dpo", "finetune.max_length=64", f"finetune.examples.too_long={too_long}")
        published, rows, _, _ = build_examples(root, [*_pairs(), long, late], *more)
        assert len(rows) == rows_left and published.counts["dropped"] == dropped


def test_rejected_answers_from_single_answers(root):
    records = [{"instruction": f"Say number {n}.", "output": f"Number {n}."} for n in range(40)]
    records += [{"text": "No question."}, records[0]]
    more = ("finetune.method=dpo", "finetune.examples.rejected=verbose", "data.max_bad_fraction=0.5")
    published, rows, _, _ = build_examples(root, records, *more)
    assert len(rows) == 40 and published.counts["dropped"] == {chat.REPEATED: 1}
    for row in rows.values():
        before, _, after = row["rejected"].partition(row["chosen"])
        assert row["chosen"] in row["rejected"] and before.endswith((": ", ". ")) and (not after or after[0] == " ")
    assert len({row["rejected"].replace(row["chosen"], "") for row in rows.values()}) == 16
    with pytest.raises(RequestError, match=r"examples\.rejected is read with method=dpo only"):
        build_examples(root, records, "finetune.examples.rejected=verbose")


@pytest.mark.parametrize(
    ("records", "more", "message"),
    [
        (
            _long_records(),
            (),
            r"format=preference needs chosen and rejected, but records\d+.jsonl has the fields prompt",
        ),
        (_pairs(), ("finetune.examples.format=text",), r"examples.format \(text\): method=dpo learns preferences"),
        (_pairs(), ("finetune.packing=true",), r"packing \(true\) is for single answers"),
        (_pairs(), ("finetune.examples.kind=pydocs", "finetune.examples.path=null"), r"\(pydocs\) has no preferences"),
        (_pairs(), ("finetune.examples.loss_on=all",), r"examples.loss_on \(all\): method=dpo learns answers"),
    ],
)
def test_a_stage_that_learns_preferences_needs_them(root, records, more, message):
    with pytest.raises(RequestError, match=message):
        build_examples(root, records, "finetune.method=dpo", *more)


def test_rejected_examples_are_shown(root, capsys):
    records = [*_long_records(), _long_records()[0], {"prompt": "Empty.", "completion": ""}]
    options = example_options(root, records, "finetune.max_length=48")
    recipe = load_recipe(RECIPE, options)
    assert main(["examples", "--recipe", str(RECIPE), *options]) == 0
    assert "2 dropped (1 longer than finetune.max_length, 1 the same conversation" in capsys.readouterr().out
    where = [option for option in options if option.startswith(("run.", "finetune.name"))]
    assert main(["rejected", "--examples", "--recipe", str(RECIPE), *where]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1  completion is empty\n1  longer than finetune.max_length\n1  the same conversation as")
    assert 'line 11: completion is empty\n  {"prompt": "Empty.", "completion": ""}' in shown
    assert "user: Count. assistant: 0 1 2 3" in shown
    assert (
        main(["rejected", "--examples", recipe.finetune[0].name, "--reason", "long", "--recipe", str(RECIPE), *where])
        == 0
    )
    assert "empty" not in capsys.readouterr().out
    with pytest.raises(RequestError, match="no fine-tuning stage other"):
        main(["rejected", "--examples", "other", "--recipe", str(RECIPE), *where])
    assert (
        manifest.require(RunLayout.of(recipe).examples_of(recipe.finetune[0].name), "examples").counts["candidates"]
        == 10
    )


def test_a_ready_tokenizer_needs_another_template(tmp_path):
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts(20), vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "corpus.jsonl", texts(20))
    more = ("tokenizer.kind=huggingface", f"tokenizer.path={tmp_path / 'tokenizer.json'}", "model.vocab_size=400")
    recipe = load_recipe(RECIPE, example_options(tmp_path, _pairs(), *more, "finetune.method=dpo"))
    documents.build(recipe)
    train(recipe)
    with pytest.raises(RequestError, match=r"set finetune.examples.template=chatml or finetune.examples.template="):
        chat.build(recipe, recipe.finetune[0])
    for template in ("chatml", "instruction"):
        _, rows, _, _ = build_examples(
            tmp_path, _pairs(), *more, "finetune.method=dpo", f"finetune.examples.template={template}"
        )
        ready = load_tokenizer(RunLayout.of(recipe).tokenizer)
        row = next(row for row in rows.values() if row["question"] == "Say number 3.")
        assert _learned(ready, row["labels_chosen"]) == "Number 3.<|endoftext|>"


def test_errors_name_the_stage_if_there_are_several(root, tmp_path):
    tree = yaml.safe_load(RECIPE.read_text())
    tree["finetune"] = [tree["finetune"], {**tree["finetune"], "name": "more"}]
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump(tree))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Say it.", "completion": ""}\n' * 2)
    (tmp_path / "one.jsonl").write_text('{"prompt": "Say it.", "completion": "It."}\n')
    for options, message in (
        (("kind=files", "path=nowhere.jsonl"), r"^finetune\.more\.examples\.path"),
        (("kind=files", f"path={tmp_path / 'bad.jsonl'}"), r"every record of finetune\.more\.examples\.path, or"),
        (("kind=files", f"path={tmp_path / 'one.jsonl'}"), r"add records to finetune\.more\.examples\.path$"),
        (
            ("kind=files", f"path={tmp_path / 'one.jsonl'}", "template=none"),
            r"^finetune\.more\.examples\.template: none",
        ),
        (
            ("kind=files", f"path={tmp_path / 'one.jsonl'}", "format=text"),
            r"map them with finetune\.more\.examples\.fi",
        ),
    ):
        keys = [f"finetune.more.examples.{option}" for option in options]
        recipe = load_recipe(path, [*overrides(root), *keys])
        with pytest.raises(RequestError, match=message):
            chat.build(recipe, recipe.stage("more"))
