"""The report is about the run that the parameters describe, in the folder that they name."""

import shutil
from pathlib import Path

from qwen3llada.params import load
from qwen3llada.training.watch.settings import settings_hash
from stages import report

ROOT = Path(__file__).parents[2]


def test_the_report_reads_the_folders_that_the_runs_wrote_to(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.yaml").write_text("seed: 5\npretrain: {reports: mine/base}\nsft: {reports: mine/chat}\n")
    params = load(Path("params.yaml"), Path("set.yaml"))
    given = {}

    def write_report(*args, **named):
        given.update(named)
        (tmp_path / "page").write_text("")
        return tmp_path / "page"

    monkeypatch.setattr("qwen3llada.report.page.write_report", write_report)
    report.main(params)
    assert given["post_training"] == Path("reports/rl")
    assert given["runs"] == {
        "pretrain": (Path("mine/base"), settings_hash(params.pretrain, seed=5)),
        "sft": (Path("mine/chat"), settings_hash(params.sft, seed=5)),
    }
