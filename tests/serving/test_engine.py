"""Which answers share passes, and which form groups."""

from collections import deque

import pytest
import torch

from qwen3llada.sampling.params import DecodeParams
from qwen3llada.serving import engine as engine_module
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


@pytest.mark.parametrize(("reason", "shares"), [(None, True), ("this policy has no graph", False)])
def test_graphs_that_are_demanded_share_passes_where_there_are_any(text, monkeypatch, reason, shares):
    """Where there are none, the answer is a group, whose sampler refuses it by name."""
    asked = []
    monkeypatch.setattr(engine_module, "why_eager", lambda model, request: asked.append(request) or reason)
    one, own = job(backend="graph"), engine(text)
    assert own._shares(one) is own._shares(one) is shares
    assert len(asked) == 1


def test_answers_without_graphs_are_counted(text):
    own = engine(text)
    own.start([job(), job()])
    assert "qwen3llada_eager_answers_total 2" in own.metrics.text(waiting=0, decoding=0)


def test_a_job_is_told_only_what_is_new(text):
    """Steps that settle nothing at the answer's front are counted and not delivered, unless the canvas is asked for."""
    own, told = engine(text), []
    for wants_canvas, expected in ((False, []), (True, [(1, 63)])):
        one = job()
        one.wants_canvas, one.deliver = wants_canvas, lambda update: told.append((update.step, update.canvas[0][0]))
        own._tell(one, slice(1, 4), torch.tensor([1, 63, 5, 63]), None, torch.tensor([0.0, 0.0, 0.5, 0.0]))
        assert one.passes == 1
        assert told == expected


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
