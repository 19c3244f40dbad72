"""Which answers share passes, and which form groups; the device is played where it is a GPU."""

from collections import deque
from types import SimpleNamespace

import pytest

from qwen3llada.sampling.params import DecodeParams
from qwen3llada.serving.engine import Engine
from qwen3llada.serving.jobs import Job
from qwen3llada.serving.metrics import Metrics
from qwen3llada.serving.progress import Progress


def job(**knobs):
    progress = Progress(None, 63, frozenset())
    params = DecodeParams(**({"gen_length": 8, "steps": 8} | knobs))
    return Job(index=0, prompt=[1, 2], params=params, seed=0, progress=progress, deliver=lambda update: None)


def engine(text, **sizes):
    return Engine(text, max_batch=4, metrics=Metrics())


@pytest.mark.parametrize(
    ("knobs", "shares"),
    [
        ({}, True),
        ({"cfg_scale": 1.0, "temperature": 1.0, "remask": 1}, True),
        ({"block_attention": False, "cache": "dual"}, False),
        ({"block_attention": True, "parallel_blocks": True}, False),
        ({"backend": "graph"}, False),
    ],
    ids=str,
)
def test_all_that_can_share_passes_does_on_a_cpu(text, knobs, shares):
    assert engine(text)._shares(job(**knobs)) is shares


@pytest.mark.parametrize(
    ("knobs", "reason", "shares"),
    [({}, None, False), ({"backend": "eager"}, None, True), ({}, "this policy has no graph", True)],
    ids=str,
)
def test_on_a_gpu_what_has_a_graph_forms_groups(text, monkeypatch, knobs, reason, shares):
    from qwen3llada.sampling.cuda import support

    asked = []
    monkeypatch.setattr(support, "why_not", lambda model, request: asked.append(request) or reason)
    one, own = job(**knobs), engine(text)
    monkeypatch.setattr(own, "_request", lambda jobs: jobs)
    monkeypatch.setattr(own, "text", SimpleNamespace(model=SimpleNamespace(device=SimpleNamespace(type="cuda"))))
    assert own._shares(one) is own._shares(one) is shares
    assert len(asked) <= 1


def test_the_oldest_start_first_and_a_group_holds_its_like(text):
    dual = {"block_attention": False, "cache": "dual"}
    shared, first, other = [job() for _ in range(6)], [job(**dual) for _ in range(3)], job(**dual, temperature=1.0)
    waiting = deque([shared[0], first[0], other, *shared[1:], *first[1:]])
    own = engine(text)
    assert own.take(waiting) == [shared[0], first[0], *shared[1:4], *first[1:]]
    assert list(waiting) == [other, *shared[4:]]
    own.start([first[0]])
    assert own.take(waiting) == shared[4:]  # the group's place is taken
    assert list(waiting) == [other]
