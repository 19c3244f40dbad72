"""A trace records what happened; its page shows it, escaped and self-contained."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabulary import MASK

from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.sampler import SampleParams, generate
from qwen3llada.sampling.trace.page import write_trace_page

EVIL = "</script><img src=x onerror=alert(1)>"
PROMPTS = [[3, 5, 7], [1, 2], [40, 41, 42, 43], [9, 6]]
SETTINGS = [
    {},
    {"parallel_blocks": True, "block_attention": True},
    {"unmask": "threshold", "confidence_threshold": 0.4},
]


def traced(text, params, prompts=PROMPTS):
    traces = []
    answers = list(text.answers(prompts, params, seed=3, on_trace=traces.append))
    return answers, traces


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_trace_tells_which_step_decided_each_token(text, setting):
    params = SampleParams(steps=8, gen_length=12, block_length=4, **setting)
    answers, traces = traced(text, params)
    canvases, confidences = [], []

    def watch(step):
        canvases.append(step.canvas.clone())
        confidences.append(step.confidence.clone())

    final = generate(text.model, PROMPTS, params, seed=3, eos_token_ids=text.ends, on_step=watch)
    assert [trace.answer for trace in traces] == answers
    start = max(map(len, PROMPTS))
    for row, (trace, tokens) in enumerate(zip(traces, final.tokens, strict=True)):
        decided = [position for _, position in trace.tokens]
        assert trace.steps == len(canvases)
        assert [position.token for position in decided[: trace.answer.answer_tokens]] == tokens.tolist()
        for step, (canvas, confidence) in enumerate(zip(canvases, confidences, strict=True), start=1):
            known = (canvas[row, start : start + len(decided)] != MASK).tolist()
            assert known == [position.step <= step for position in decided]
            for column, position in enumerate(decided):
                if position.step == step:
                    assert position.confidence == confidence[row, start + column].item()
        words = [piece.strip() for piece, _ in trace.tokens[: trace.answer.answer_tokens]]
        assert " ".join(word for word in words if word != "∎") == trace.answer.answer


REVISIONS = [
    {"edit_threshold": 0.05, "steps": 3},
    {"remask": 2, "steps": 12, "remasking": "random", "remask_start": 0.5},
    {"edit_threshold": 0.05, "remask": 1, "steps": 6, "temperature": 0.7, "parallel_blocks": True},
]


@pytest.mark.parametrize("setting", REVISIONS)
def test_a_trace_tells_what_stood_in_place_of_a_revised_token(text, setting):
    setting = {"gen_length": 12, "block_length": 4} | setting | {"block_attention": "parallel_blocks" in setting}
    params, canvases = SampleParams(**setting), []
    _, traces = traced(text, params)
    generate(
        text.model,
        PROMPTS,
        params,
        seed=3,
        eos_token_ids=text.ends,
        on_step=lambda s: canvases.append(s.canvas.clone()),
    )
    start, revised = max(map(len, PROMPTS)), 0
    for row, trace in enumerate(traces):
        decided = [position for _, position in trace.tokens]
        for step, canvas in enumerate(canvases, start=1):
            for position, token in zip(decided, canvas[row, start:].tolist(), strict=False):
                held = [MASK, *(MASK if c.token is None else c.token for c in position.earlier), position.token]
                since = [0, *(change.step for change in position.earlier), position.step]
                assert held[max(i for i, begin in enumerate(since) if begin <= step)] == token
        for number, position in enumerate(decided):
            assert [(c.step, c.confidence) for c in position.earlier] == [
                (step, sure) for step, _, sure in trace.earlier.get(number, [])
            ]
            revised += bool(position.earlier)
    assert revised


def test_watching_changes_no_answer(text):
    params = SampleParams(steps=8, gen_length=12, block_length=4, batch_size=3)
    watched, _ = traced(text, params)
    alone = list(text.answers(PROMPTS, params, seed=3))
    assert [a.answer for a in alone] == [a.answer for a in watched]


@pytest.fixture(scope="module")
def bytes_model(model):
    """The tiny model with a tokenizer of one token per byte, so that a character may span tokens."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    return TextModel(model, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


def test_pieces_join_to_the_text_and_no_character_is_torn(bytes_model):
    text = "A<b> naïve café, 日本 🦊!"
    ids = bytes_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not {MASK, *bytes_model.ends} & set(ids)
    pieces = bytes_model.pieces(ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode())
    assert pieces[-5:] == ["", "", "", "🦊", "!"]
    torn = ids[:-2]  # the fox lacks its last byte
    assert "".join(bytes_model.pieces(torn)) == bytes_model.tokenizer.decode(torn)
    eos = bytes_model.tokenizer.eos_token_id
    masked = bytes_model.pieces([*ids[:3], MASK, *ids[-5:], eos])
    assert masked == ["A", "<", "b", "▒", "", "", "", "🦊", "!", "∎"]
    assert bytes_model.pieces([]) == []


class Page(HTMLParser):
    """Elements and texts, with the class of the element that each text stands in, and what would be loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.elements, self.loaded, self.texts = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, given))
        self.loaded += [given[name] for name in ("src", "href", "action", "data") if name in given]
        if tag not in ("meta", "input", "img"):
            self.open.append((tag, given.get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1][1] if self.open else None, [name for _, name in self.open], data))

    def inside(self, name: str) -> list[str]:
        return [text for _, classes, text in self.texts if name in classes]


def test_the_page_holds_the_answers_and_loads_nothing(text, tmp_path):
    params = SampleParams(steps=8, gen_length=12, block_length=4)
    answers, traces = traced(text, params)
    path = tmp_path / "new" / "page.html"
    write_trace_page(path, traces, {"model": "out/some-model", "steps": 8, "block_attention": None})
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []  # what is opened is closed
    assert page.loaded == []
    assert not re.search(r"https?:|//\w|@import|url\(|import\s*\(|fetch|XMLHttp", html)
    spans = [given for tag, given in page.elements if tag == "span" and "data-step" in given]
    decided = [position for trace in traces for _, position in trace.tokens]
    assert [int(given["data-step"]) for given in spans] == [position.step for position in decided]
    assert [float(given["data-confidence"]) for given in spans] == [
        pytest.approx(position.confidence, abs=5e-5) for position in decided
    ]
    tails = ["data-tail" in given for given in spans]
    assert tails.count(False) == sum(answer.answer_tokens for answer in answers)
    shown = "".join(page.inside("canvas"))
    assert shown == "".join(piece for trace in traces for piece, _ in trace.tokens)
    assert [text.strip() for text in page.inside("prompt")] == [" ".join(map(str, prompt)) for prompt in PROMPTS]
    facts = [text.strip() for text in page.inside("facts") if "token" in text]
    counts = ["1 token" if a.answer_tokens == 1 else f"{a.answer_tokens} tokens" for a in answers]
    assert facts == [f"{count}, {a.forward_passes} forward passes" for count, a in zip(counts, answers, strict=True)]
    sliders = [given for tag, given in page.elements if tag == "input"]
    assert [(given["min"], given["max"]) for given in sliders] == [("0", str(traces[0].steps))] * len(PROMPTS)
    cells = [text.strip() for text in page.inside("mono") if text.strip()]
    assert cells == ["model", "out/some-model", "steps", "8", "block_attention", "null"]


def test_texts_cannot_become_markup(text, tmp_path):
    _, (trace,) = traced(text, SampleParams(steps=4, gen_length=4, block_length=4), PROMPTS[:1])
    evil_before = {0: [(1, "' onclick='alert(1)" + EVIL, 0.5)]}
    evil = dataclasses.replace(
        trace,
        answer=dataclasses.replace(trace.answer, prompt=EVIL),
        tokens=[(EVIL, decided) for _, decided in trace.tokens],
        earlier=evil_before,
    )
    write_trace_page(tmp_path / "page.html", [evil], {"model": EVIL})
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert html.count("</script>") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.inside("prompt") == [EVIL]
    (before,) = [given["data-earlier"] for _, given in page.elements if "data-earlier" in given]
    assert json.loads(before) == [[1, evil_before[0][0][1], 0.5]]
    assert not any("onclick" in given for _, given in page.elements)
    assert page.inside("canvas") == [EVIL] * len(evil.tokens)


def test_a_row_that_nothing_was_decided_of_is_empty(text):
    from qwen3llada.sampling.decoding import Step
    from qwen3llada.sampling.trace.recording import TraceRecorder

    recorder = TraceRecorder()
    committed = torch.tensor([[False, True, True], [False, False, False]])
    recorder(Step(index=0, canvas=torch.full((2, 3), 5), committed=committed, confidence=committed.float()))
    assert [position.step for position in recorder.row(0, 1)] == [1, 1]
    assert recorder.row(1, 1) == []
