"""Which requests the gate lets through, by their header Authorization."""

import secrets

import pytest

from qwen3llada.serving.gate import allowed


@pytest.mark.parametrize(
    ("header", "let_in"),
    [
        (b"Bearer secret", True),
        (b"bearer secret", True),  # RFC 9110: the scheme's case does not matter
        (b"Bearer  secret", True),  # and one or more spaces follow it
        (b"secret", False),
        (b"Basic secret", False),
        (b"Bearersecret", False),
        (b"Bearer", False),
        (b"Bearer ", False),
        (b"Bearer wrong", False),
        (b"Bearer Secret", False),
        (b"Bearer secret secret", False),
        (b"", False),
        (None, False),
    ],
)
def test_the_key_follows_the_word_bearer(header, let_in):
    assert allowed(header, "secret") is let_in


@pytest.mark.parametrize("header", [b"Bearer anything", b"anything", None])
def test_without_a_key_all_may_ask(header):
    assert allowed(header, None)


def test_keys_are_compared_in_constant_time_whatever_their_length(monkeypatch):
    compared = []
    plain = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda *texts: compared.append(texts) or plain(*texts))
    for header in (b"Bearer s", b"Bearer secret", b"Bearer " + b"s" * 99, b"secret", None):
        allowed(header, "secret")
    assert len(compared) == 5
    assert len({len(text) for pair in compared for text in pair}) == 1
