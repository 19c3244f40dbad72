"""Choice of the checkpoint to resume from: none is skipped silently, and errors name differences and options."""

import errno
import logging
import os
from pathlib import Path

import pytest
from runs import changed, checkpoint, saved_steps, weights
from test_training_checkpoint import FOREIGN, OURS, write

from flows.guard import TOLD_TO_STOP
from flows.outcome import REPORT_OF_STOP
from flows.outcome import read_outcome as outcome_of_stage
from qwen3llada.artifacts import file_digest, read_json
from qwen3llada.training import loop
from qwen3llada.training.checkpoints.folder import CheckpointError, finish, read_outcome, read_state
from qwen3llada.training.checkpoints.resuming import find_checkpoint, schedule_conflict
from qwen3llada.training.loop import train
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import Stopped, stop_message
from qwen3llada.training.watch.curves import Curves
from qwen3llada.training.watch.monitor import Monitor

SCHEDULE = {"optim.warmup_ratio": 0.1, "optim.decay_ratio": 0.2, "total_steps": 100}
CONSTANT = OURS | SCHEDULE | {"optim.scheduler": "constant_with_warmup"}
STABLE = OURS | SCHEDULE | {"optim.scheduler": "warmup_stable_decay"}
COSINE = OURS | SCHEDULE | {"optim.scheduler": "cosine"}


def longer(run, steps=200):
    return run | {"total_steps": steps}


def test_an_unfinished_run_that_differs_stops_a_new_one_and_names_the_ways_on(tmp_path):
    foreign = write(tmp_path, 20, fingerprint=FOREIGN)
    with pytest.raises(CheckpointError) as error:
        find_checkpoint("latest", tmp_path, OURS)
    said = str(error.value)
    assert said == (
        f"{foreign}: of a run that was not finished, and that differs: optim.lr is 0.0003 there and 0.0001 here;"
        f" resume_from: '' starts anew, and so does removing {foreign.parent};"
        f" resume_from: {foreign} goes on from there with the changes"
    )
    assert find_checkpoint("", tmp_path, OURS) is None
    found, state = find_checkpoint(str(foreign), tmp_path, OURS)
    assert (found, state.global_step, state.fingerprint) == (foreign, 20, OURS)


def test_a_matching_run_goes_on_whatever_lies_beside_it(tmp_path):
    ours = write(tmp_path, 10)
    write(tmp_path, 20, fingerprint=FOREIGN)
    assert find_checkpoint("latest", tmp_path, OURS)[0] == ours


def test_finished_runs_stop_nothing_and_train_anew(tmp_path, caplog):
    write(tmp_path, 20, fingerprint=FOREIGN)
    finish(tmp_path, FOREIGN)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("latest", tmp_path, OURS) is None
    assert "starting anew" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("latest", tmp_path, FOREIGN) is None
    assert "has finished before; it trains anew" in caplog.text


@pytest.mark.parametrize("key", ["seed", "step_size", "data files", "optim.name", "adapter.rank", "optim.scheduler"])
def test_what_a_checkpoint_means_nothing_under_is_refused_even_if_it_is_named(tmp_path, key):
    theirs = OURS | {key: "other"}
    foreign = write(tmp_path, 20, fingerprint=theirs)
    with pytest.raises(CheckpointError, match=f"made by another run: .*{key}"):
        find_checkpoint(str(foreign), tmp_path, OURS | {key: "ours"})
    with pytest.raises(CheckpointError, match=key) as error:
        find_checkpoint("latest", tmp_path, OURS | {key: "ours"})
    assert "goes on from there" not in str(error.value)


@pytest.mark.parametrize(
    ("run", "step", "steps", "allowed"),
    [
        (CONSTANT, 50, 200, True),
        (CONSTANT, 100, 200, True),
        (CONSTANT, 15, 200, False),  # the longer run would still be in its warm-up
        (CONSTANT, 50, 50, False),  # already finished
        (STABLE, 50, 200, True),
        (STABLE, 80, 200, True),  # the last step before its decay
        (STABLE, 81, 200, False),
        (STABLE, 50, 60, False),  # in the decay of the shorter run
        (COSINE, 50, 200, False),
        (COSINE | {"optim.scheduler": "linear"}, 50, 200, False),
    ],
)
def test_the_learning_rate_decides_whether_more_steps_go_on(run, step, steps, allowed):
    conflict = schedule_conflict(longer(run, steps), run, step)
    assert (conflict == "") == allowed
    if not allowed:
        assert f"total_steps is 100 there and {steps} here" in conflict


def test_more_steps_go_on_from_the_newest_that_the_schedule_allows(tmp_path):
    stable, _ = [write(tmp_path, step, fingerprint=STABLE) for step in (80, 100)]
    finish(tmp_path, STABLE)
    found, state = find_checkpoint("latest", tmp_path, longer(STABLE))
    assert (found, state.fingerprint) == (stable, longer(STABLE))


def test_more_steps_are_refused_by_name_where_the_schedule_depends_on_them(tmp_path):
    newest = write(tmp_path, 100, fingerprint=COSINE)
    finish(tmp_path, COSINE)
    reason = "total_steps is 100 there and 200 here, and the learning rate of optim.scheduler=cosine depends on it"
    with pytest.raises(CheckpointError, match=f"{newest} cannot go on: {reason}.*resume_from: '' starts anew"):
        find_checkpoint("latest", tmp_path, longer(COSINE))
    with pytest.raises(CheckpointError, match=reason):
        find_checkpoint(str(newest), tmp_path, longer(COSINE))
    assert find_checkpoint("latest", tmp_path, COSINE | {"total_steps": 50}) is None  # fewer steps make another run


def test_a_finished_run_trains_anew_and_more_steps_go_on(pretraining, monkeypatch):
    """`--force` trains again, to the same weights and a complete summary. A killed export is done later."""
    optim = pretraining.optim.model_dump() | {"scheduler": "constant_with_warmup"}
    params = changed(pretraining, save_steps=3, optim=optim)
    first = train(params, seed=1)
    before = weights(params)
    assert read_outcome(checkpoint(params, 6).parent) == "finished"
    again = train(params, seed=1)
    assert again["resumed_from"] is None
    for figures in (first, again):
        assert figures["tokens_per_second"] > 0
    assert (again["loss"], again["eval_loss"]) == (first["loss"], first["eval_loss"])
    assert all((weights(params)[name] == tensor).all() for name, tensor in before.items())

    # killed between last step and export: the summary still covers the whole run
    with monkeypatch.context() as killed:
        killed.setattr(loop, "save_final_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(params, seed=1)
    assert read_outcome(checkpoint(params, 6).parent) is None
    ended = train(params, seed=1)
    assert ended["resumed_from"] == str(checkpoint(params, 6))
    assert (ended["loss"], ended["eval_loss"], ended["steps"]) == (first["loss"], first["eval_loss"], 6)
    assert ended["tokens_per_second"] > 0
    outcome, measured = (read_json(params.reports / f"{name}.json") for name in ("summary", "speed"))
    assert measured.pop("of") == file_digest(params.reports / "summary.json")
    assert outcome | measured == ended

    more = train(changed(params, max_steps=9), seed=1)
    assert more["resumed_from"] == str(checkpoint(params, 6))
    assert more["steps"] == 9
    assert 9 in saved_steps(params.output_dir)


def interrupt(run):
    raise KeyboardInterrupt


def test_a_named_checkpoint_goes_on_with_a_changed_learning_rate(pretraining):
    """The optimiser's settings come from the parameters, not from the checkpoint."""
    params = changed(pretraining, save_steps=3, max_steps=3, do_eval_loss=False)
    params = changed(params, optim=params.optim.model_dump() | {"scheduler": "constant_with_warmup"})
    train(params, seed=1)
    optim = params.optim.model_dump() | {"lr": 0.005, "weight_decay": 0.3, "betas": [0.8, 0.9]}
    named = changed(params, max_steps=6, optim=optim, resume_from=str(checkpoint(params, 3)))
    run = start(named, seed=1, template="plain")
    groups = run.inner_optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.005, 0.005]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [tuple(group["betas"]) for group in groups] == [(0.8, 0.9), (0.8, 0.9)]
    assert run.lr_schedule.get_last_lr() == [0.005, 0.005]
    assert run.state.global_step == 3
    assert run.inner_optimizer.state_dict()["state"], "the moments are those of the checkpoint"


def test_a_run_that_starts_anew_replaces_what_an_earlier_attempt_saved(pretraining, monkeypatch):
    """Otherwise a later attempt would resume from the newest checkpoint of the abandoned one."""
    params = changed(pretraining, save_steps=2, do_eval_loss=False)
    with monkeypatch.context() as killed:
        killed.setattr(loop, "save_final_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(params, seed=1)
    assert saved_steps(params.output_dir) == [4, 6]
    with monkeypatch.context() as killed:
        killed.setattr(loop, "is_due", due_at_2_killed_at_3)
        with pytest.raises(KeyboardInterrupt):
            train(changed(params, resume_from=""), seed=1)
    assert saved_steps(params.output_dir) == [2]
    assert find_checkpoint("latest", params.output_dir, state_at(params, 2).fingerprint)[0] == checkpoint(params, 2)


def due_at_2_killed_at_3(every, step):
    if step == 3:
        raise KeyboardInterrupt
    return step == 2


def state_at(params, step):
    return read_state(checkpoint(params, step))


def test_a_stop_saves_and_says_so(pretraining, monkeypatch, capsys):
    monkeypatch.setattr(Monitor, "stop_requested", property(lambda self: self.run.state.global_step == 3))
    with pytest.raises(Stopped) as stopped:
        train(pretraining, seed=1)
    assert stopped.value.code == 75
    assert saved_steps(pretraining.output_dir) == [3]
    saved = f"checkpoint saved at step 3 in {checkpoint(pretraining, 3)}; the next run goes on from there"
    lines = capsys.readouterr().err.splitlines()
    assert f"stopped by a signal: {saved}" in lines
    assert saved in outcome_of_stage(TOLD_TO_STOP, lines).message  # the flows recognise the message


def test_a_stop_says_how_the_next_run_finds_the_checkpoint(monkeypatch):
    saved = "stopped by SIGINT: checkpoint saved at step 3 in out/step-3; "
    step = ("SIGINT", 3, Path("out/step-3"))
    assert stop_message(*step, "latest") == f"{saved}the next run goes on from there"
    for given in ("", "out/step-1"):
        assert stop_message(*step, given) == f"{saved}resume_from: out/step-3 goes on from it"
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    note = stop_message(*step, "latest").splitlines()[1]
    assert REPORT_OF_STOP.search(note)  # the flows leave out the note and dvc's report


def test_a_full_disk_of_reports_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    curves = Curves(tmp_path / "reports")
    monkeypatch.setattr(curves, "_write", full)
    with pytest.raises(OSError, match=f"no space left on the disk for {tmp_path}/reports") as error:
        curves.add(1, {"train/loss": 1.0})
    assert error.value.errno == errno.ENOSPC


def test_save_steps_0_saves_nothing(pretraining):
    assert (pretraining.save_steps, pretraining.do_eval_loss) == (0, True)
    train(pretraining, seed=1)
    assert saved_steps(pretraining.output_dir) == []
