"""A direct call replaces nothing that DVC tracks unless it is asked to."""

import os
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qwen3llada.knob_variables import DVC_STAGE
from qwen3llada.sampling.dialogue.ask import SampleRequest
from qwen3llada.tracked import Request, check_inputs, check_tracked

ROOT = Path(__file__).parents[1]
PARAMS = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
PIPELINE = """
stages:
  convert: {cmd: x, outs: ["${convert.dst}"]}
  sft:
    deps: ["${convert.dst}", "${sft.data}", params.yaml]
    outs: ["${sft.dst}"]
    metrics: ["${sft.reports}/summary.json"]
    plots: ["${sft.reports}/plots": {x: step}]
  sample:
    deps: ["${sft.data}", "${sft.dst}"]
    outs: [reports/samples.jsonl]
    metrics: [reports/sample.json: {cache: false}]
  tokenize_pack: {cmd: x, outs: [data/tokenized]}
  other: {foreach: [a], do: {cmd: x, outs: ["${item}"]}}
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> None:
    """A project after a run: the outputs of `sft` and `sample` exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DVC_STAGE, raising=False)
    Path("dvc.yaml").write_text(PIPELINE)
    for name in ("out/qwen3llada-sft/config.json", "reports/sft/summary.json", "reports/samples.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")


def check(stage: str, asked: Request | None = None, **knobs: str) -> None:
    own = stage if stage in PARAMS else None
    used = PARAMS | ({own: PARAMS[own] | knobs} if own else {})
    check_tracked(stage, own, used, PARAMS, asked or Request())


def refused(stage: str, message: str, asked: Request | None = None, **knobs: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(stage, asked, **knobs)


STILL = "tracked by DVC, this call would replace what is there; give"


def test_outputs_of_the_stage_itself():
    refused(
        "sft",
        f"out/qwen3llada-sft, reports/sft/summary.json: {STILL} another --dst and --reports, or --force,"
        " or run dvc repro sft",
    )
    refused("sft", f"reports/sft/summary.json: {STILL} another --reports, or --force, or .*", dst="out/try")
    refused("sample", f"reports/samples.jsonl: {STILL} --force, or run dvc repro sample")
    check("sft", dst="out/try", reports="reports/try")


def test_outputs_of_other_stages_by_any_name():
    for dst in ("out/qwen3llada-sft", "./out/../out/qwen3llada-sft", "out", "out/qwen3llada-sft/inside"):
        refused("convert", f".*: {STILL} another --dst, or --force, or run dvc repro convert", dst=dst)
    Path("link").symlink_to("out")
    refused("convert", f"link/qwen3llada-sft: {STILL} .*", dst="link/qwen3llada-sft")
    check("convert", dst="out/qwen3llada-sft-2")


def test_what_is_not_there_is_not_asked_about():
    check("convert")
    Path("reports/samples.jsonl").unlink()
    check("sample")


def test_what_is_asked_for_or_run_by_dvc_is_replaced(monkeypatch):
    check("sft", Request(force=True))
    monkeypatch.setenv(DVC_STAGE, "sft")
    check("sft")


def test_without_dvc_nothing_is_tracked():
    Path("dvc.yaml").unlink()
    check("sft")


def test_what_the_last_run_wrote_elsewhere_stays_tracked():
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {convert: {cmd: x, outs: [{path: out/before, md5: a}]}}\n")
    check("convert", dst="out/before")
    Path("out/before").mkdir()
    refused("convert", f"out/before: {STILL} .*", dst="out/before")


def test_a_broken_file_of_dvc_is_one_line():
    Path("dvc.lock").write_text("<<<<<<< HEAD\nstages: [}\n")
    with pytest.raises(ValueError, match=r"^dvc\.lock: not valid YAML"):
        check("sft")


def test_answers_to_prompts_are_no_outputs_but_may_replace_one():
    check("sample", SampleRequest(prompt=["Who?"]))
    check("sample", SampleRequest(interactive=True))
    check("sample", SampleRequest(prompt=["Who?"], out=Path("answers.jsonl")))
    asked = SampleRequest(prompt=["Who?"], out=Path("reports/samples.jsonl"))
    refused("sample", f"reports/samples.jsonl: {STILL} another --out, or --force", asked)
    check("sample", SampleRequest(prompt=["Who?"], out=Path("reports/samples.jsonl"), force=True))


def test_every_stage_of_the_pipeline_asks(monkeypatch):
    """With the real dvc.yaml and all outputs present. Its stages are complete (`test_dvc`)."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    Path("dvc.yaml").write_text(text)
    Path("dvc.lock").write_text((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    for name in ("data/raw/model", "out/qwen3llada-converted", "out/qwen3llada-base", "data/tokenized/pretrain"):
        Path(name).mkdir(parents=True)
    for name in ("analyze.json", "validation.json", "eval_loss.json", "evaluate.json", "report.html"):
        Path("reports", name).write_text("{}")
    for stage in YAML(typ="safe", pure=True).load(text)["stages"]:
        refused(stage, f".*: {STILL} .*--force, or run dvc repro {stage}")


def test_the_second_pipeline_is_known_by_its_address():
    """`dvc repro` does not run it, so messages name its file; its outputs and inputs are looked after as the others."""
    folder = Path("post_training")
    folder.mkdir()
    (folder / "dvc.yaml").write_text((ROOT / "post_training/dvc.yaml").read_text(encoding="utf-8"))
    Path("reports/rl").mkdir()
    Path("reports/rl/summary.json").write_text("{}")
    ways = "another --reports, or --force, or run dvc repro post_training/dvc.yaml:rl"
    refused("rl", f"reports/rl/summary.json: {STILL} {ways}", dst="out/try")
    check("rl", dst="out/try", reports="reports/try")
    refused("sft", f"reports/rl/summary.json: {STILL} another --reports, or --force, .*", dst="x", reports="reports/rl")
    shutil.rmtree("out/qwen3llada-sft")
    missing("rl", "out/qwen3llada-sft, data/tokenized/sft: not there yet; first run dvc repro sft tokenize_pack")
    Path("reports/rl/summary.json").unlink()
    (folder / "dvc.lock").write_text("stages: {rl: {outs: [{path: out/old}]}}")
    Path("out/old").mkdir()
    refused("rl", f"out/old: {STILL} another --dst, or --force, or .*", dst="out/old")


def missing(stage: str, message: str, asked: Request | None = None) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_inputs(stage, PARAMS, asked or Request())


def test_what_another_stage_makes_is_asked_of_that_stage(monkeypatch):
    """Only inputs that a stage makes are checked; others are left to their readers."""
    missing(
        "sft", "out/qwen3llada-converted, data/tokenized/sft: not there yet; first run dvc repro convert tokenize_pack"
    )
    Path("out/qwen3llada-converted").mkdir()
    missing("sft", "data/tokenized/sft: not there yet; first run dvc repro tokenize_pack")
    missing("sample", "data/tokenized/sft: not there yet; .*")
    check_inputs("sample", PARAMS, SampleRequest(prompt=["Who?"]))
    check_inputs("sample", PARAMS, SampleRequest(prompt=["Who?"], model=Path("Qwen/none")))
    Path("data/tokenized/sft").mkdir(parents=True)
    check_inputs("sft", PARAMS, Request())
    check_inputs("sft", PARAMS | {"sft": PARAMS["sft"] | {"data": "mine"}}, Request())
    Path("out/qwen3llada-sft/config.json").rename("config.json")
    Path("out/qwen3llada-sft").rmdir()
    missing("sample", "out/qwen3llada-sft: not there yet; first run dvc repro sft", SampleRequest(prompt=["Who?"]))
    missing("sample", ".*dvc repro sft", SampleRequest(interactive=True))
    check_inputs("sample", PARAMS, SampleRequest(prompt=["Who?"], model=Path("out/qwen3llada-converted")))
    monkeypatch.setenv(DVC_STAGE, "sample")  # DVC has checked it already
    check_inputs("sample", PARAMS, Request())


def test_in_a_fresh_clone_each_stage_but_the_first_names_another(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("clone"))
    Path("dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text())["stages"]:
        if stage != "download":
            missing(stage, r"(data|out|reports)/.*: not there yet; first run dvc repro [a-z_ ]+")
    check_inputs("download", PARAMS, Request())


def test_models_and_tokens_are_enough_to_train(tmp_path_factory, monkeypatch):
    """Where they were copied to a machine for training: what data/raw says serves the model's card alone."""
    monkeypatch.chdir(tmp_path_factory.mktemp("clone"))
    Path("dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for stage, model, data in (
        ("pretrain", "out/qwen3llada-converted", "data/tokenized/pretrain"),
        ("sft", "out/qwen3llada-base", "data/tokenized/sft"),
    ):
        with pytest.raises(ValueError, match="not there yet") as refused:
            check_inputs(stage, PARAMS, Request())
        assert "SOURCE.json" not in str(refused.value)
        for folder in (model, data):
            Path(folder).mkdir(parents=True)
        check_inputs(stage, PARAMS, Request())


def test_a_stage_asks_before_it_begins(monkeypatch, capsys):
    """Through `run_as_stage`, which starts every stage. Every stage has the flag --force."""
    import sys

    from qwen3llada import params

    Path("out/qwen3llada-converted").mkdir()
    Path("data/tokenized/sft").mkdir(parents=True)
    (Path.cwd() / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    begun: list[str] = []

    def main(params: object) -> None:
        begun.append(os.environ.get(DVC_STAGE, "direct"))

    monkeypatch.setattr(params.inspect, "getfile", lambda main: "stages/sft.py")
    for argv, status in ((["--max_steps", "10"], 1), (["--max_steps", "10", "--force"], 0)):
        monkeypatch.setattr(sys, "argv", ["sft", *argv])
        with pytest.raises(SystemExit) as ended:
            params.run_as_stage(main, own="sft", shared=("seed",))
        assert ended.value.code == status
    assert begun == ["direct"]
    assert "error: out/qwen3llada-sft, " in capsys.readouterr().err
