"""The page about a run: what it shows is what the stages wrote, and it needs no network."""

import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3llada.artifacts import file_digest, read_json, read_jsonl, write_json, write_jsonl
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity
from qwen3llada.errors import InputError
from qwen3llada.objective.loss_by_level import BUCKET_NAMES
from qwen3llada.report import charts
from qwen3llada.report.data import flat_numbers, read_curves, training_charts
from qwen3llada.report.page import write_report
from qwen3llada.report.params import ReportParams
from qwen3llada.report.replay import record_answers
from qwen3llada.report.run_facts import compare_with_previous
from qwen3llada.sampling.dialogue.exact_match import answer_heldout
from qwen3llada.sampling.sampler import SampleParams

SETTINGS = "0123456789abcdef"
EVIL = "</script><img src=x onerror=alert(1)>"
RULES = {"pairs": {"severity": "error", "passed": True, "judged": 3, "broken": 0}}


def write_outputs(root: Path, exact_match: float = 0.75) -> Path:
    """Small outputs of all stages, in the form that they write."""
    reports = root / "reports"
    for phase in ("pretrain", "sft"):
        points = [
            {"step": step, "train/loss": 4 / step, "train/learning_rate": 0.1, f"train/by_noise_level/{name}": 1.5}
            for step in (10, 20, 30)
            for name in BUCKET_NAMES[:3]
        ]
        write_jsonl(reports / phase / "metrics.jsonl", points)
        summary = {
            "steps": 30,
            "loss": 0.25,
            "eval_loss": 0.625,
            "optimizer": "adamw",
            "parameters": 10,
            "trained_parameters": 10,
            "settings": SETTINGS,
        }
        write_json(reports / phase / "summary.json", summary)
        write_speed(reports / phase)
    losses = {"guidelines": 0.875, "dllm": 0.5}
    write_json(reports / "eval_loss.json", {"pretrain": losses, "sft": losses})
    details = {"loss": 0.5, "loss_impl": "dllm", "samples": 7}
    levels = {"by_noise_level": {"0.0-0.1": 0.1}}
    write_json(reports / "eval_loss_details.json", {"pretrain": details, "sft": details | levels})
    write_evaluation(reports)
    write_json(reports / "sample.json", {"exact_match": exact_match, "samples": 4})
    rows = [{"prompt": EVIL, "answer": "a < b", "reference": "a < b", "match": True}]
    write_jsonl(reports / "samples.jsonl", rows * 3)
    split = {"records": 3, "invalid": 0, "rules": RULES}
    write_json(
        reports / "validation.json", {"passed": True, "problems": [], "warnings": [], "train": split, "heldout": split}
    )
    text = {"documents": 9, "dropped_tokens": 5, "blank_documents": 0, "sequences": 4, "sequence_tokens": 4321}
    talks = {"records": 3, "dropped": 1, "samples": 2, "sample_tokens": 80}
    tokens = {"pretrain": {"train": text, "heldout": text}, "sft": {"train": talks, "heldout": talks}}
    write_json(reports / "tokenize_pack/tokenize.json", tokens)
    mask = {"token": "<|mask|>", "id": 5, "free_rows": 2}
    counts = {"converted_parameters": 12_345, "embedding_parameters": 99, "tied": True, "mask": mask, "tensors": [{}]}
    where = {"source": "data/raw/model", "converted": "out/converted", "problems": []}
    write_json(reports / "analyze.json", {"ok": True, "summary": {"identical": 1}, **where, **counts})
    files = {"a.json": {"bytes": 3, "sha256": "00"}}
    write_json(root / "SOURCE.json", {"model": {"source": "builtin", "revision": None, "files": files}})
    return reports


def write_evaluation(reports: Path) -> None:
    """As the stage evaluate leaves it."""
    numbers = {"text_nelbo": 1.25, "text_nelbo_error": 0.03125, "answers_nelbo": 2.5, "answers_nelbo_error": 0.0625}
    source = {"text_nll": 7.125, "text_nll_error": 0.011, "answers_nll": 7.25, "answers_nll_error": 0.042}
    write_json(reports / "evaluate.json", {"source": source, "pretrain": numbers, "sft": numbers})
    level = {"by_noise_level": {"0.0-0.1": 0.25, "0.1-0.2": 0.5}}
    quality = [
        {"unmask": unmask, "setting": n, "exact_match": 0.5, "answer_nll": 0.75, "tokens_per_pass": float(n)}
        for unmask in ("threshold", "fixed")
        for n in (1, 2)
    ]
    models = {"source": {"text": {}, "answers": {}}, "sft": {"text": level, "answers": level}}
    write_json(reports / "evaluate/details.json", {"rounds": 2, "models": models, "quality": quality})
    speeds = [{"unmask": row["unmask"], "setting": row["setting"], "tokens_per_second": 321.5} for row in quality]
    of = file_digest(reports / "evaluate/details.json")
    write_json(reports / "evaluate/throughput.json", {"of": of, "settings": speeds})


def write_speed(folder: Path, rate: float | None = 123.4) -> None:
    """Speed files as a training run leaves them beside its summary. `rate` None: it took no step."""
    speed = {"of": file_digest(folder / "summary.json"), "tokens_per_second": rate, "mfu": None, "peak_memory_gib": 1.5}
    write_json(folder / "speed.json", speed)
    points = [{"step": step, "train/tokens_per_second": rate} for step in (10, 20) if rate is not None]
    write_jsonl(folder / "speed.jsonl", points)


def beside(root: Path) -> str:
    """The HTML that report_run.js puts into the page, if it belongs to this page."""
    page = (root / "reports/report.html").read_text(encoding="utf-8")
    call = (root / "reports/report_run.js").read_text(encoding="ascii")
    run = json.loads(re.fullmatch(r"showRun\((.*)\);\n", call)[1])
    assert f'data-identity="{run["page"]}"' in page
    return run["html"]


def shown(root: Path) -> str:
    """The text of report_run.js, on one line."""
    return " ".join(" ".join(Page(beside(root)).text).split())


def make(root: Path, parameters=None, *, samples=24, played=0, runs=None, **played_from) -> str:
    sampled = {"model": root / "model", "heldout": root / "heldout", "sample": SampleParams(), "seed": 0}
    page = write_report(
        root / "reports",
        ReportParams(played=played, samples=samples),
        runs={phase: (root / "reports" / phase, SETTINGS) for phase in ("pretrain", "sft")} | (runs or {}),
        parameters=parameters or {"sft": {"optim": {"lr": 0.001}}},
        source=root / "SOURCE.json",
        **(sampled | played_from),
    )
    return page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Counts tags, and collects texts and everything that would be loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.loaded = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_the_numbers_and_loads_one_file_beside_it(tmp_path):
    write_outputs(tmp_path)
    html = make(tmp_path, samples=2)
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    assert page.loaded == ["report_run.js"]
    assert not re.search(r"@import|url\(|https?://", html + beside(tmp_path))
    assert "img" not in page.tags  # HTML in a sample is shown as text
    assert "75 % of 4 held-out answers exact" in text
    assert "12,345 parameters" in text
    assert "0.5 held-out loss, fine-tuning" in text  # of eval_loss, not of the last evaluation during training
    assert text.count(EVIL) == 2
    assert "2 of 3 answers; samples.jsonl has all" in text
    assert text.count("0.875") == 2
    assert "sft.optim.lr 0.001" in text
    assert "Pretraining, training 9 4 4,321 5 dropped tokens" in text
    assert "Fine-tuning, held out 3 2 80 1 dropped" in text
    assert "This is the first run here" in shown(tmp_path)
    assert page.tags.count("svg") == 2 * 3 + 1 + 3  # loss, by noise level and rate of two runs; of losses and bounds
    summary = (tmp_path / "reports/summary.md").read_text()
    assert "75 % exact of 4" in summary


def test_the_curves_and_the_summary_are_those_of_the_run_asked_for(tmp_path, capsys):
    reports = write_outputs(tmp_path)
    write_jsonl(tmp_path / "mine/metrics.jsonl", [{"step": 10, "train/loss": 7.25}, {"step": 20, "train/loss": 7.5}])
    summary = read_json(reports / "sft/summary.json") | {"trained_parameters": 987_654, "settings": "other"}
    write_json(tmp_path / "mine/summary.json", summary)
    stale = "mine/summary.json: of another run than the parameters of sft describe"
    with pytest.raises(ValueError, match=stale):
        make(tmp_path, runs={"sft": (tmp_path / "mine", SETTINGS)})
    with pytest.raises(FileNotFoundError, match=r"none/summary\.json"):
        make(tmp_path, runs={"pretrain": (tmp_path / "none", SETTINGS)})
    assert not (reports / "report.html").exists()
    html = make(tmp_path, runs={"sft": (tmp_path / "mine", "other")})
    assert "987,654" in html
    assert capsys.readouterr().err == ""
    del summary["settings"]  # written by an older version
    write_json(tmp_path / "mine/summary.json", summary)
    make(tmp_path, runs={"sft": (tmp_path / "mine", "other")})
    assert "mine/summary.json does not say which parameters" in capsys.readouterr().err


def test_the_next_run_is_compared_with_this_one(tmp_path):
    write_outputs(tmp_path, exact_match=0.5)
    make(tmp_path)
    make(tmp_path)
    assert "This is the first run here" in shown(tmp_path)  # repeating the report adds no run
    write_outputs(tmp_path, exact_match=0.75)
    make(tmp_path, {"sft": {"optim": {"lr": 0.002}}})
    text = shown(tmp_path)
    assert "sft.optim.lr 0.001 0.002" in text
    assert "sample.exact_match 0.5 0.75 +0.25" in text
    assert "sample.samples" not in text  # unchanged since then
    assert re.search(r"[1-9]\d* other metrics are as before", text)


def test_what_the_machine_decides_is_beside_the_page_and_not_in_it(tmp_path, monkeypatch):
    """Outputs tracked by DVC have the same bytes with other speeds, on another machine, after another run."""
    reports = write_outputs(tmp_path)
    make(tmp_path)
    tracked = [reports / "report.html", reports / "summary.md"]
    first = [file.read_bytes() for file in tracked]
    assert shown(tmp_path).count("123.4 tokens/s, 1.5 GiB.") == 2
    assert Page(beside(tmp_path)).tags.count("svg") == 2

    from qwen3llada.report import page as report

    monkeypatch.setattr(report, "hardware", lambda: {"Processor": "another"})
    monkeypatch.setattr(report, "revision", lambda: "cafe-dirty")
    earlier = {"revision": "a", "parameters": {}, "metrics": {"sample.exact_match": 0.5}}
    write_jsonl(reports / "history.jsonl", [earlier])
    write_json(reports / "sweep.json", {"metric": None, "variants": []})
    write_speed(reports / "pretrain", 777.5)
    write_speed(reports / "sft", None)  # nothing was trained: the run resumed at its last step
    make(tmp_path)
    assert [file.read_bytes() for file in tracked] == first
    text = shown(tmp_path)
    for said in ("cafe-dirty", "another", "777.5 tokens/s", "sample.exact_match 0.5 0.75 +0.25"):
        assert said in text
    assert "None" not in text


def test_speeds_of_another_run_are_not_shown(tmp_path):
    """DVC restores the summary of an earlier run, but not its speed.json."""
    reports = write_outputs(tmp_path)
    summary = reports / "sft/summary.json"
    write_json(summary, read_json(summary) | {"loss": 0.5})
    (reports / "pretrain/speed.json").unlink()
    write_json(reports / "evaluate/details.json", read_json(reports / "evaluate/details.json") | {"rounds": 3})
    make(tmp_path)
    assert "tokens/s" not in shown(tmp_path)
    assert shown(tmp_path).count("Its speed is not known here") == 2


def test_each_place_in_the_page_has_its_part_beside_it(tmp_path):
    """A script of another page is recognised by its hash."""
    write_outputs(tmp_path)
    html = make(tmp_path)
    places = re.findall(r'data-run="([\w-]+)"', html)
    assert sorted(places) == ["comparison", "machine", "post-training", "quality", "speed-pretrain", "speed-sft"]
    assert re.findall(r'data-run="([\w-]+)"', beside(tmp_path)) == [
        "machine",
        "speed-pretrain",
        "speed-sft",
        "quality",
        "post-training",
        "comparison",
    ]
    (identity,) = re.findall(r'<body data-identity="(\w{16})">', html)
    before = html.replace(identity, "{identity of this page}")
    assert hashlib.sha256(before.encode()).hexdigest().startswith(identity)
    other = make(tmp_path, samples=1)
    assert f'data-identity="{identity}"' not in other


def test_history_is_bounded_and_compares_with_the_latest_that_differs(tmp_path):
    path = tmp_path / "history.jsonl"
    for i in range(150):
        run = {"revision": str(i), "parameters": {"a": "1"}, "metrics": {"m": i}}
        previous = compare_with_previous(path, run)
    assert len(list(read_jsonl(path))) == 100
    assert previous == {"revision": "148", "parameters": [], "metrics": [("m", 148, 149, 1)], "unchanged": 0}


def test_a_sweep_is_shown_with_its_failures(tmp_path):
    reports = write_outputs(tmp_path)
    metric, answered = "reports/eval_loss.json:sft.guidelines", "reports/sample.json:exact_match"
    rows = [
        {"name": "s-a", "overrides": ["x=a"], "metrics": {metric: 1.25, answered: 0.5}, "error": None},
        {"name": "s-b", "overrides": ["x=b"], "metrics": {}, "error": "it failed"},
    ]
    write_json(reports / "sweep.json", {"metric": metric, "variants": rows})
    make(tmp_path)
    text = shown(tmp_path)
    assert f"{metric} {answered} s-a x=a 1.25 0.5" in text
    assert "s-b x=b – – it failed" in text
    assert "this run 0.875 0.75" in text  # from eval_loss and sample
    assert f"{metric}, lower is better" in text
    assert "this run 0.875 s-a 1.25" in text  # the chart, best first

    write_json(reports / "sweep.json", {"metric": answered, "better": "higher", "variants": rows})
    make(tmp_path)
    assert f"{answered}, higher is better" in shown(tmp_path)
    assert "this run 0.75 s-a 0.5" in shown(tmp_path)
    assert "s-a x=a 0.5 s-b" in shown(tmp_path)  # one column

    write_json(reports / "sweep.json", {"metric": None, "variants": rows[1:]})  # no variant has a metric
    make(tmp_path)
    assert "s-b x=b it failed" in shown(tmp_path)


@pytest.mark.parametrize(("shown_at_most", "said"), [(24, True), (30, False), (31, False)])
def test_the_report_says_when_it_lists_only_some_answers(tmp_path, shown_at_most, said):
    reports = write_outputs(tmp_path)
    answer = {"prompt": "Why?", "answer": "Because.", "reference": "Because.", "match": True}
    write_jsonl(reports / "samples.jsonl", [answer] * 30)
    text = " ".join(" ".join(Page(make(tmp_path, samples=shown_at_most)).text).split())
    assert text.count("Why?") == min(shown_at_most, 30)
    assert ("24 of 30 answers" in text) is said
    assert ("of 30 answers" in text) is said


def test_an_output_that_is_missing_is_named(tmp_path):
    (write_outputs(tmp_path) / "eval_loss.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"eval_loss\.json"):
        make(tmp_path)
    assert not (tmp_path / "reports/report.html").exists()


def test_curves_of_dvclive_and_of_the_plain_file_are_the_same(tmp_path):
    from qwen3llada.training.watch.curves import Curves

    curves = Curves(tmp_path / "live")
    plain = []
    for step in (1, 2, 5):
        values = {"train/loss": 1 / step, "train/by_noise_level/0.0-0.1": float(step)}
        curves.add(step, values)
        plain.append({"step": step, **values})
    curves.close()
    assert curves.writer == "dvclive"
    write_jsonl(tmp_path / "plain/metrics.jsonl", plain)
    expected = {"train/loss": [(1, 1.0), (2, 0.5), (5, 0.2)], "train/by_noise_level/0.0-0.1": [(1, 1), (2, 2), (5, 5)]}
    assert read_curves(tmp_path / "live") == read_curves(tmp_path / "plain") == expected
    assert list(training_charts(expected)) == ["Loss", "Loss by noise level"]


def test_a_file_that_is_no_curve_is_named(tmp_path):
    table = tmp_path / "plots/metrics/loss.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("time\tloss\n1\t2\n")
    with pytest.raises(ValueError, match=r"loss\.tsv: must have the columns step and loss"):
        read_curves(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pretrain/plots/metrics/loss.tsv", b"step\tloss\n1\t0.5\n2"),  # cut off
        ("pretrain/plots/metrics/loss.tsv", b"step\tloss\n1\thalf\n"),
        ("pretrain/plots/metrics/loss.tsv", b"step\tloss\n1\t\xff\n"),
        ("sft/metrics.jsonl", b'{"step": 1, "train/loss": null}\n'),
        ("sft/metrics.jsonl", b"[1]\n"),
        ("sft/summary.json", b"[1]"),
        ("analyze.json", b"3"),
        ("tokenize_pack/tokenize.json", b'{"pretrain": '),
        ("history.jsonl", b'{"revision": 1}\n'),
        ("sweep.json", b'{"variants": 3}'),
        ("../SOURCE.json", b'{"model": {"files": []}}'),
    ],
)
def test_a_damaged_output_is_one_line_that_names_it(tmp_path, name, content):
    path = write_outputs(tmp_path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name}: ") as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "reports/report.html").exists()


class TestCharts:
    def coordinates(self, svg):
        text = re.search(r'points="([^"]+)"', svg)[1]
        return [tuple(map(float, pair.split(","))) for pair in text.split()]

    def test_points_lie_in_proportion(self):
        points = self.coordinates(charts.line_chart({"a": [(0, 0), (5, 10), (10, 5)]}, x_label="x", y_label="y"))
        (x0, y0), (x1, y1), (x2, y2) = points
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
        assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)
        assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in points)

    def test_an_axis_from_zero_shows_heights_in_proportion(self):
        (_, low), (_, high) = self.coordinates(
            charts.line_chart({"a": [(0, 80), (1, 100)]}, x_label="x", y_label="y", zero=True)
        )
        bottom = charts.HEIGHT - charts.BOTTOM
        assert (bottom - low) / (bottom - high) == pytest.approx(0.8, abs=0.01)

    def test_one_point_a_flat_curve_and_none(self):
        many = charts.line_chart({str(n): [(0, n), (1, n)] for n in range(6)}, x_label="x", y_label="y")
        styles = re.findall('<polyline class="([^"]*)"', many)
        assert styles == ["s0", "s1", "s2", "s3", "s0 dashed", "s1 dashed"]
        assert "<circle" in charts.line_chart({"a": [(3, 7)]}, x_label="x", y_label="y")
        assert len(self.coordinates(charts.line_chart({"a": [(0, 2), (1, 2)]}, x_label="x", y_label="y"))) == 2
        assert charts.line_chart({"a": [], "b": [(0, float("nan"))]}, x_label="x", y_label="y") == ""

    @pytest.mark.parametrize(("low", "high"), [(0, 1), (4.1, 7.3), (-3, 2e5), (1e-6, 2e-6), (5, 5), (0, 0)])
    def test_ticks_are_round_and_span_the_range(self, low, high):
        ticks = charts.ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= charts.TICKS + 3
        mantissas = {f"{(b - a):e}".split("e")[0].rstrip("0") for a, b in itertools.pairwise(ticks)}
        assert mantissas <= {"1.", "2.", "2.5", "5."}

    @pytest.mark.parametrize("count", [1, 299, 300, 301, 12_345])
    def test_long_curves_are_thinned_and_keep_their_end(self, count):
        points = [(i, i) for i in range(count)]
        kept = charts.thin(points)
        assert len(kept) <= charts.POINTS
        assert kept[-1] == points[-1]

    def test_bars_are_as_long_as_their_values(self):
        svg = charts.bar_chart({"<a>": 2.0, "b": 1.0}, label="l")
        first, second = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg))
        assert first == pytest.approx(2 * second, abs=0.2)
        assert "&lt;a&gt;" in svg

    def test_a_long_name_of_a_bar_has_room(self):
        svg = charts.bar_chart({"sweep-guidelines-cosine": 1.0}, label="l")
        assert float(re.search(r'<text x="(\d+)"', svg)[1]) > 6.5 * len("sweep-guidelines-cosine")

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (3, "3"),
            (12_345, "12,345"),
            (0.000123456, "0.0001235"),
            (98_765.4, "98,765"),
            (7161.1, "7,161"),
            (2.5, "2.5"),
        ],
    )
    def test_numbers_for_people(self, value, text):
        assert charts.number(value) == text

    @pytest.mark.parametrize(
        ("value", "error", "text"),
        [
            (7.182623, 0.011535, "7.183 ± 0.012"),
            (0.043979, 0.007882, "0.0440 ± 0.0079"),
            (3.729204, 0.164602, "3.73 ± 0.16"),
            (0.5, 0.0996, "0.50 ± 0.10"),
            (12_345.6, 234.0, "12,350 ± 230"),
            (-38.96, 3.54, "-39.0 ± 3.5"),
            (7.182623, None, "7.183"),
            (1.0, 0.0, "1 ± 0"),
            (1.25, float("nan"), "1.25 ± nan"),
        ],
    )
    def test_a_value_has_the_decimals_of_its_error(self, value, error, text):
        assert charts.measured(value, error) == text


def test_flat_numbers_leaves_out_what_is_none():
    assert flat_numbers({"a": {"b": 1, "c": None, "d": True}, "e": "x", "f": 2.5}) == {"a.b": 1, "f": 2.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained tiny model with a tokenizer of one word per id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(30)} | {"<eos>": 30, "<mask>": 31}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = Qwen3LLadaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mask_token_id=31,
        eos_token_id=30,
    )
    Qwen3LLadaForMaskedLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    fast.save_pretrained(folder)
    return folder


def test_the_first_answers_can_be_played(tmp_path, checkpoint):
    """The player shows the answers of the stage `sample`, and the page has a player for each."""
    write_outputs(tmp_path)
    heldout = tmp_path / "heldout"
    prompts = [[1, 2, 3], [4, 5], [6, 7], [8, 9]]
    with new_sequences(heldout, prompts=True) as writer:
        tokens = np.array([token for prompt in prompts for token in [*prompt, 10, 30]], np.int32)
        lengths = np.array([len(prompt) + 2 for prompt in prompts])
        writer.add(tokens, lengths, lengths - 2)
        writer.close()
    tokenizer = load_tokenizer(checkpoint)
    write_json(heldout / MANIFEST, identity(tokenizer) | template_identity(tokenizer, "plain"))
    params = SampleParams(steps=8, gen_length=8, block_length=4, samples=3)
    answer_heldout(checkpoint, heldout, tmp_path / "sampled", params, seed=3)
    answers = list(read_jsonl(tmp_path / "sampled/samples.jsonl"))
    assert [row["prompt"] for row in answers] == ["w1 w2 w3", "w6 w7", "w8 w9"]  # at even distances
    traces = record_answers(checkpoint, heldout, params, count=2, seed=3)
    for trace, row in zip(traces, answers[:2], strict=True):
        assert {name: row[name] for name in ("prompt", "answer", "answer_tokens")} == {
            name: getattr(trace.answer, name) for name in ("prompt", "answer", "answer_tokens")
        }
    options = {"model": checkpoint, "heldout": heldout, "sample": params, "seed": 3}
    page = Page(make(tmp_path, played=2, **options))
    assert page.tags.count("button") == 2
    assert page.loaded == ["report_run.js"]
    assert " ".join(page.text).count("w1 w2 w3") == 1


def test_likelihoods_have_their_errors_and_quality_its_chart(tmp_path):
    write_outputs(tmp_path)
    page = make(tmp_path)
    text = " ".join(" ".join(Page(page).text).split())
    assert "Fine-tuning 1.250 ± 0.031 2.500 ± 0.062" in text
    assert "Qwen3 that conversion started from, left to right 7.125 ± 0.011 7.250 ± 0.042" in text
    points = {"threshold": [(1.0, 0.5), (2.0, 0.5)], "fixed": [(1.0, 0.5), (2.0, 0.5)]}
    chart = charts.line_chart(points, x_label="tokens per forward pass", y_label="exact match", dots=True)
    assert chart in page
    assert "321.5" not in page  # of the machine: beside the page
    assert "threshold 1 0.5 0.75 1 321.5" in shown(tmp_path)
    assert "Fine-tuning**: text 1.250 ± 0.031, answers 2.500 ± 0.062" in (tmp_path / "reports/summary.md").read_text()


def test_a_likelihood_without_a_standard_error_stands_alone(tmp_path):
    reports = write_outputs(tmp_path)
    numbers = read_json(reports / "evaluate.json")
    write_json(reports / "evaluate.json", numbers | {"sft": numbers["sft"] | {"text_nelbo_error": None}})
    text = " ".join(" ".join(Page(make(tmp_path)).text).split())
    assert "Fine-tuning 1.25 2.500 ± 0.062" in text
    assert "Fine-tuning**: text 1.25, answers 2.500 ± 0.062" in (tmp_path / "reports/summary.md").read_text()


def test_without_speeds_of_this_machine_there_is_no_table_of_them(tmp_path):
    (write_outputs(tmp_path) / "evaluate/throughput.json").unlink()
    make(tmp_path)
    assert "tokens per pass" not in shown(tmp_path)
