"""What is masked, and what is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cleaning import pii
from tests.support.pipeline.texts import column, texts

KINDS = ("email", "ip", "phone")
EMAIL, IP, IP6, PHONE = "email@example.com", "192.0.2.1", "2001:db8::1", "202-555-0100"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a.b+c@mail.example.de.", f"write to {EMAIL}."),
        ("<x_1@d-e.co.uk>", f"<{EMAIL}>"),
        ("no @mention, no a@b, no a @ b.de", None),
        ("from 8.8.8.8, 1.2.3.4.", f"from {IP}, {IP}."),
        ("10.0.0.1 127.0.0.1 192.168.1.1 256.1.1.1 1.2.3.4.5 v1.2.3.4", None),
        ("to 2606:4700:4700::1111 and fe80::1", f"to {IP6} and fe80::1"),
        ("at 08:06:12 and 12:30", None),
        ("call +44 20 7946 0958 or +14155552671!", f"call {PHONE} or {PHONE}!"),
        (
            "call (415) 555-2671, 415-555-2671, 415.555.2671 or 1-415-555-2671",
            "call " + f"{PHONE}, " * 2 + f"{PHONE} or {PHONE}",
        ),
        ("+61 (0) 401 420 922", PHONE),
        ("4155552671, 2024-01-15, 123-456-7890, 3.141-592-6535, +1,000,000, +10 %, 1939-1945", None),
        ("isbn 978-0-306-40615-7 and 0415-555-2671", None),
    ],
)
def test_masking(text, masked):
    assert pii.mask(column([text]), KINDS).texts.to_pylist() == [text if masked is None else masked]


def test_only_the_requested_kinds_are_masked():
    batch = column(["a@b.de 8.8.8.8", "415-555-2671"])
    assert pii.mask(batch, ["ip"]).texts.to_pylist() == [f"a@b.de {IP}", "415-555-2671"]
    assert pii.mask(batch, []) == (batch, {})


_DATA = st.lists(st.sampled_from(["a@b.de", "8.8.8.8", "+44 20 7946 0958", "::", "1", ".", "@", " ", "x", "é"])).map(
    "".join
)


@settings(deadline=None)
@given(st.lists(st.one_of(texts, _DATA), max_size=4))
def test_texts_do_not_affect_each_other(batch):
    alone = [pii.mask(column([text]), KINDS).texts[0].as_py() for text in batch]
    together = pii.mask(column(batch), KINDS)
    assert together.texts.to_pylist() == alone
    counts = [pii.mask(column([text]), KINDS).counts for text in batch]
    assert together.counts == {kind: sum(count[kind] for count in counts) for kind in KINDS}


def test_replacements_are_counted():
    batch = [
        "a@b.de, c@d.de and email@example.com",
        "8.8.8.8 10.0.0.1 192.0.2.1",
        "415-555-2671 202-555-0100",
        "a@b.de",
    ]
    assert pii.mask(column(batch), KINDS).counts == {"email": 3, "ip": 1, "phone": 1}
    assert pii.mask(column(batch), ["phone"]).counts == {"phone": 1}
    assert pii.mask(column([]), KINDS).counts == dict.fromkeys(KINDS, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("email@example.comemail@example.com", 1),
        ("myemail@example.com email@example.com.au", 2),
        ("email@example.com,a@b.de", 1),
        ("\0a@b.de\0 c@d.de", 2),
    ],
)
def test_addresses_that_contain_the_placeholder_count(text, count):
    assert pii.mask(column([text]), ["email"]).counts == {"email": count}


def test_placeholders_stay():
    text = " ".join([EMAIL, IP, IP6, PHONE])
    assert pii.mask(column([text]), KINDS) == (column([text]), dict.fromkeys(KINDS, 0))
