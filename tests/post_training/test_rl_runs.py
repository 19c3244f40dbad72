"""Whole runs: resumed or killed they end with the same bytes; more ranks compute the same; they end early if asked."""

import os
import re
import shutil
import signal

import pytest
import torch
from runs import changed, checkpoint, curves, start_process, train_together, weights
from waiting import newest, wait_until

from qwen3llada.artifacts import read_json, read_jsonl
from qwen3llada.errors import InputError
from qwen3llada.post_training import held_out
from qwen3llada.post_training.task import Rewarded, post_train
from qwen3llada.report.data import read_curves
from qwen3llada.report.rollouts_page import read_post_training, write_rollouts_page
from qwen3llada.training.checkpoints.save_and_restore import save
from qwen3llada.training.loop import measure, train, training_steps
from qwen3llada.training.params import SftParams
from qwen3llada.training.start.claiming import claim_destinations
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor

STEPS = 8


def tracked(params) -> dict[str, bytes]:
    names = ("plots", "summary.json", "rollouts.jsonl", "heldout.jsonl")
    roots = [params.dst, params.output_dir / "rollouts", *(params.reports / name for name in names)]
    files = [file for root in roots for file in [root, *root.rglob("*")] if file.is_file()]
    return {str(file): file.read_bytes() for file in sorted(files)}


def leave_after(params, step):
    """Take `step` steps, save, and write nothing else."""
    run = start(params, seed=1, template="plain", task=Rewarded(params))
    claim_destinations(params, run.accelerator, started=True)
    monitor = Monitor(run, StopRequest())
    measure(run, monitor)
    for result in training_steps(run, StopRequest()):
        monitor.take(result)
        if result.step % params.eval_every_steps == 0:
            with monitor.pause():
                measure(run, monitor)
        if result.step == step:
            with monitor.pause():
                run.state.telemetry = monitor.state()
                save(run, monitor.points)
            return


def run(params):
    return post_train(params, seed=1, template="plain")


MORE = {"kl": 0.1, "method": "trace", "attention": {"policy": "block_causal", "block_length": 4}}


@pytest.mark.parametrize("changes", [MORE], ids=["more"])
def test_interrupted_run_leaves_the_same_bytes(params, changes):
    """Left between the two updates on a batch of rollouts, in the first epoch and in the second."""
    params = changed(params, max_steps=10, eval_every_steps=9, **changes)
    run(params)
    whole = tracked(params)
    assert len(list((params.output_dir / "rollouts").iterdir())) == 5
    for step in (3, 9) if changes else (8, 9):
        for folder in (params.dst, params.output_dir, params.reports):
            shutil.rmtree(folder)
        leave_after(params, step)
        assert (checkpoint(params, step) / "data.pt").exists() is (step != 8)
        kept = {path.name: path.read_bytes() for path in (params.output_dir / "rollouts").iterdir()}
        run(params)
        again = tracked(params)
        assert again == whole
        assert all(again[str(params.output_dir / "rollouts" / name)] == content for name, content in kept.items())


def test_the_first_update_has_ratio_one_and_the_first_model_no_divergence(params):
    optim = {"lr": 0.01, "warmup_ratio": 0.0}
    params = changed(params, kl=0.1, save_steps=STEPS, optim=optim)
    run(params)
    points = [point for point in curves(params, STEPS) if "train/kl_to_rollouts" in point]
    assert [point["train/kl_to_rollouts"] == 0 for point in points] == [True, False] * 4
    assert [point["train/kl_to_reference"] == 0 for point in points] == [True] + [False] * (STEPS - 1)
    names = {"entropy", "clip_fraction", "reward", "reward_spread", "answer_length", "tokens_per_pass", "equal_groups"}
    assert {f"train/{name}" for name in names} <= points[0].keys()
    summary = read_json(params.reports / "summary.json")
    assert {"eval_reward_before", "eval_reward", "best_eval_reward"} <= summary.keys()
    rows = list(read_jsonl(params.reports / "rollouts.jsonl"))
    assert len(rows) == 4
    assert rows[0]["batch"] == 3
    assert all(sum(row["rewards"].values()) == row["reward"] for row in rows)
    assert len(list(read_jsonl(params.reports / "heldout.jsonl"))) == 3


@pytest.mark.parametrize("method", ["trace", "best_of"])
def test_a_policy_gradient_and_the_best_answers_learn(params, method):
    """The reward is the share of words below w20, about a half at first."""
    batch = {"prompts_per_batch": 7, "group_size": 12, "updates_per_batch": 1, "micro_batch_size": 128}
    rollout = params.rollout.model_dump() | {"batch_size": 128, "gen_length": 4, "steps": 2}
    optim = {"lr": 0.01, "warmup_ratio": 0.0, "scheduler": "constant_with_warmup"}
    params = changed(params, method=method, max_steps=12, eval_every_steps=99, optim=optim, rollout=rollout, **batch)
    run(params)
    curve = read_curves(params.reports)["train/reward"]
    assert sum(value for _, value in curve[-3:]) / 3 > curve[0][1] + 0.15


def test_the_page_shows_rewards_and_plays_the_steps(params):
    params = changed(params, max_steps=2)
    run(params)
    page = write_rollouts_page(params.reports, params.dst, params.method).read_text()
    row = next(iter(read_jsonl(params.reports / "rollouts.jsonl")))
    assert f"reward {row['reward']:.4g}" in page
    steps = re.findall(r'data-step="(\d+)"', page.split('<div class="answer"')[1])
    assert steps == [str(step) for step in row["steps"]]
    assert {"Reward", "Entropy", "Clipped tokens"} <= set(re.findall("<figcaption>(.*?)</figcaption>", page))
    assert read_post_training(params.reports)["page"] == "rl/rollouts.html"
    assert read_post_training(params.reports.parent) is None


def test_lora_learns_and_is_held_to_the_model_without_it(params):
    adapter = {"method": "lora", "rank": 4}
    params = changed(params, kl=0.01, adapter=adapter, save_steps=STEPS)
    summary = run(params)
    assert summary["trained_parameters"] < summary["parameters"]
    points = [point for point in curves(params, STEPS) if "train/kl_to_reference" in point]
    assert points[0]["train/kl_to_reference"] == 0 < points[-1]["train/kl_to_reference"]


def test_a_run_ends_at_its_target_and_without_progress(params, monkeypatch):
    rewards = iter([0.1, 0.2, 0.5, 0.5, 0.5, 0.5])

    def figures(*args):
        return {"reward": next(rewards), "reward_spread": 0.0}

    monkeypatch.setattr(held_out, "figures", figures)
    assert run(changed(params, eval_every_steps=1, target_reward=0.5))["steps"] == 2
    rewards = iter([0.1, 0.2, 0.2, 0.15, 0.5])
    assert run(changed(params, eval_every_steps=1, patience=2))["steps"] == 3


def test_a_run_that_ended_early_does_not_go_on_when_killed_before_its_model_was_written(params, monkeypatch):
    params = changed(params, eval_every_steps=2, save_steps=2, target_reward=-1.0)
    run(params)
    whole = tracked(params)
    assert read_json(params.reports / "summary.json")["steps"] == 2
    shutil.rmtree(params.dst)
    (next(params.output_dir.glob("checkpoints/*")) / "outcome.json").unlink()
    run(params)
    assert tracked(params) == whole


def test_rollouts_of_an_earlier_run_do_not_lie_among_the_new_ones(params):
    run(changed(params, max_steps=3))
    folder = params.output_dir / "rollouts"
    assert sorted(file.name for file in folder.iterdir()) == ["batch-000000.jsonl", "batch-000001.jsonl"]
    (folder / "mine.txt").write_text("notes")
    run(changed(params, max_steps=1))
    assert sorted(file.name for file in folder.iterdir()) == ["batch-000000.jsonl", "mine.txt"]


@pytest.mark.parametrize("knobs", [{"remask": 1}, {"edit_threshold": 0.5}], ids=str)
def test_a_trace_of_tokens_that_are_revised_is_refused_by_its_knobs(params, knobs):
    rollout = {"gen_length": 8, "block_length": 4, "steps": 4, **knobs}
    with pytest.raises(ValueError, match=r"method=trace needs rollouts .* once: rollout\.remask="):
        changed(params, method="trace", rollout=rollout)
    changed(params, method="coupled", rollout=rollout)


def test_several_rewards_have_a_curve_each(params):
    more = {"name": "length", "argument": "2-4", "weight": 0.5}
    given = params.model_dump()["rewards"] + (more,)
    run(changed(params, max_steps=1, rewards=given))
    curves = read_curves(params.reports)
    for kind in ("train", "eval"):
        first, second = (dict(curves[f"{kind}/rewards/{name}"]) for name in ("low_words", "length"))
        total = dict(curves[f"{kind}/reward"])
        assert total == pytest.approx({step: first[step] + 0.5 * second[step] for step in total})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 8}, "max_length=8 must be at least 12: 4 tokens of the longest prompt"),
        ({"rewards": [{"name": "nowhere.py:f"}]}, "nowhere.py cannot be loaded"),
        (
            {"rollout": {"gen_length": 8, "steps": 4, "block_length": 4, "backend": "graph"}},
            "backend=graph cannot be used: the model is on cpu",
        ),
        (
            {"rollout": {"gen_length": 8, "steps": 1, "block_length": 4}},
            "steps=1 must be at least the number of",
        ),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_written(params, changes, message):
    with pytest.raises(InputError, match=message):
        run(changed(params, **changes))
    assert not params.output_dir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [True], ids=["fsdp2"])
def test_two_processes_give_the_rollouts_and_weights_of_one(params, tmp_path, sharded):
    params = changed(params, kl=0.05, save_steps=3, save_total_limit=9)
    run(params)
    together = changed(params, dst=tmp_path / "m2", output_dir=tmp_path / "w2", reports=tmp_path / "r2")
    train_together(together, 2, sharded=sharded, work=run)
    torch.testing.assert_close(weights(together), weights(params), rtol=1e-3, atol=1e-4)
    for name in ("rollouts.jsonl", "heldout.jsonl"):
        ours, theirs = (list(read_jsonl(p.reports / name)) for p in (params, together))
        assert [(row["tokens"], row["steps"]) for row in ours] == [(row["tokens"], row["steps"]) for row in theirs]
    # one process goes on from the middle of a batch of rollouts of the two
    alone = changed(together, dst=tmp_path / "m3", output_dir=tmp_path / "w3", resume_from=str(checkpoint(together, 3)))
    run(alone)
    torch.testing.assert_close(weights(alone), weights(params), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_runs_end_as_one_run(params, tmp_path):
    params = changed(params, save_steps=1, max_steps=12)
    run(params)
    whole = tracked(params)
    for folder in (params.dst, params.output_dir, params.reports):
        shutil.rmtree(folder)
    rollouts = params.output_dir / "rollouts"
    # With the first rollouts; after a checkpoint; with the rollouts of a later step.
    for begun in (
        lambda: list(rollouts.glob("batch-*")),
        lambda: newest(params) >= 3,
        lambda: len(list(rollouts.glob("batch-*"))) > 3,
    ):
        child = start_process(run, params)
        wait_until(begun, child)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    (rollouts / ".batch-000000.jsonl.01234567.partial").write_text("half")
    (params.reports / ".heldout.jsonl.89e3e010.partial").write_text("half")
    run(params)
    assert tracked(params) == whole
    assert not [path for folder in (params.output_dir, params.reports) for path in folder.rglob("*.partial")]


@pytest.mark.parametrize("method", ["semi_ar", "trace"])
def test_sft_by_block_and_by_trajectory(params, tmp_path, method):
    """The trajectories are the rollouts of a run on rewards."""
    run(changed(params, max_steps=2))
    folders = {"dst": tmp_path / "s", "output_dir": tmp_path / "sw", "reports": tmp_path / "sr"}
    knobs = {"model": params.model, "data": params.data, "max_length": 16, "max_steps": 3, "eval_every_steps": 3}
    traced = {"trajectories": params.output_dir / "rollouts"} if method == "trace" else {}
    fine = SftParams.model_validate({"method": method, "attention": {"block_length": 4}} | folders | knobs | traced)
    summary = train(fine, seed=1)
    assert (summary["steps"], summary["eval_loss"] > 0) == (3, True)
