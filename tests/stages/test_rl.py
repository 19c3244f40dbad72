"""The stage `rl` under several processes: the main one writes the page about the rollouts, after the summary."""

from types import SimpleNamespace

import accelerate
import pytest

from qwen3llada.params import load
from qwen3llada.post_training import task
from qwen3llada.report import rollouts_page
from stages import rl


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_alone_writes_the_page(monkeypatch, capsys, main):
    pages = []
    summary = {"eval_reward_before": 0.25, "eval_reward": 0.5, "steps": 3}
    monkeypatch.setattr(task, "post_train", lambda *args, **options: summary)
    monkeypatch.setattr(rollouts_page, "write_rollouts_page", lambda *args: pages.append(args))
    monkeypatch.setattr(accelerate, "PartialState", lambda: SimpleNamespace(is_main_process=main))
    rl.main(load())
    assert len(pages) == main
    assert capsys.readouterr().out == "held-out reward 0.250 before, 0.500 after 3 steps\n" * main
