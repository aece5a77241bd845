"""Builds of chat examples: what the template refuses, how reasons are counted, and which revision is read."""

import json

import datasets
import huggingface_hub

from pipeline.examples import chat, rendering
from pipeline.sources import hub
from tests.support.pipeline.chat_examples import build_examples

SHORT = [{"prompt": f"Say number {n}.", "completion": f"Number {n}."} for n in range(8)]
PAIRS = [
    {"prompt": f"Say number {n}.", "chosen": f"Number {n}.", "rejected": f"I will not say {n}."} for n in range(12)
]


def test_a_pair_whose_prompt_alone_is_refused_is_dropped(root, tmp_path):
    """The template renders the complete conversations, but not what precedes the answers."""
    path = tmp_path / "odd.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role ~ ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{% if messages[0].role == 'system' %}{{ raise_exception('no prompt here') }}"
        "{% endif %}{{ 'assistant: ' }}{% endif %}"
    )
    records = [*PAIRS, {**PAIRS[0], "system": "Be brief."}]
    published, rows, kept, _ = build_examples(
        root, records, "finetune.method=dpo", f"finetune.examples.template={path}", "finetune.max_length=128"
    )
    assert published.counts["dropped"] == {"refused by the template: no prompt here": 1} and len(rows) == 12
    assert [row["id"].rpartition(" ")[2] for row in kept] == ["13"]


def test_the_number_of_reasons_is_bounded(root, tmp_path):
    """Reasons can contain text of the examples: here the template's messages, and the names of fields."""
    path = tmp_path / "talkative.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'user' and 'odd' in m.content %}"
        "{{ raise_exception('\\ud800 odd: ' ~ m.content) }}{% endif %}{{ m.content ~ eos_token }}{% endfor %}"
    )
    records = [{"prompt": f"odd {n} {'x' * (300 * (n == 0))}", "completion": f"{n}."} for n in range(60)]
    records += [{f"field{n}": n} for n in range(30)] + SHORT * 2
    published, rows, kept, _ = build_examples(root, records, f"finetune.examples.template={path}")
    dropped, unusable = published.counts["dropped"], published.counts["bad_inputs"]
    assert dropped.pop(chat.REPEATED) == 8 and len(rows) == 8
    assert sum(dropped.values()) == 60 and sum(unusable.values()) == 30
    assert len(unusable) == 30 and len(dropped) == 21 and dropped[rendering.OTHER] == 40
    assert max(map(len, dropped)) == 200 and "refused by the template: \\ud800 odd: odd 1" in dropped
    assert {row["reason"] for row in kept} == {chat.REPEATED, *dropped, *unusable}


def test_a_branch_that_moves_during_the_build_is_read_at_the_recorded_commit(root, tmp_path, monkeypatch):
    """Every request for the branch's commit gets another answer, and every commit has other records."""
    commits = iter(f"{number:040x}" for number in range(10))

    def repo_info(self, name, repo_type, revision):
        assert revision == "main"
        return huggingface_hub.hf_api.DatasetInfo(
            id=name, sha=next(commits), private=False, downloads=0, likes=0, tags=[]
        )

    for number in range(2):
        folder = tmp_path / f"{number:040x}"
        folder.mkdir()
        records = [{**record, "completion": f"Commit {number}, {n}."} for n, record in enumerate(SHORT)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    at = {name: getattr(datasets, name) for name in ("load_dataset", "load_dataset_builder")}
    for name, real in at.items():
        local = lambda path, config, revision, real=real, **keys: real(str(tmp_path / revision), config, **keys)  # noqa: E731
        monkeypatch.setattr(datasets, name, local)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    hub._load.cache_clear()
    hub._builder.cache_clear()
    more = ("kind=hub", "path=nobody/answers", "revision=main")
    published, rows, _, _ = build_examples(root, [], *(f"finetune.examples.{key}" for key in more))
    assert published.inputs["commit"] == f"{0:040x}"
    assert {row["answer"] for row in rows.values()} == {f"Commit 0, {n}." for n in range(len(SHORT))}
