"""The table of sequence lengths in docs/scaling.md is what `python -m bench.context` prints."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import context
from qwen3llada.params import load

ROOT = Path(__file__).parents[2]


def test_the_documentation_has_what_the_command_prints():
    line = f"| {' | '.join(context.row('qwen3-8b'))} |"  # one row, because each takes most of a second
    assert line in (ROOT / "docs/scaling.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("usable", "length"), [(10_239, 9 * 1024), (10_240, 10 * 1024), (1023, 0)])
def test_the_longest_is_the_last_that_fits(monkeypatch, usable, length):
    """With an estimate of one byte a token."""
    monkeypatch.setattr(context, "estimate_memory", lambda params, *_, **__: SimpleNamespace(total=params.max_length))
    params = load(ROOT / "params.yaml").pretrain
    assert context.longest(params, None, usable) == length
