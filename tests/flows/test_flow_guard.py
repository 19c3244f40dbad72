"""Real dvc, real signals: effects on training and on dvc's files."""

import os
import signal
import subprocess
import threading
import time

import psutil
import pytest
from flow_kills import next_life

from flows import dvcfiles
from flows.graph import Policy, Stage
from flows.outcome import StageFailedError
from flows.stage import run_stage

pytestmark = pytest.mark.timeout(900)  # on a busy machine each dvc takes a minute to start
GUARD = ("-m", "flows.guard", "--grace", "20", "--", "python", "-m", "dvc", "repro", "--single-item", "train")
ENDLESS = 1_000_000  # steps: the training never ends before it is stopped


def whole_again(project):
    """Nothing is left running, and the next run resumes and ends with the undisturbed model."""
    assert project.processes() == []
    lives, steps = len(project.lives()), project.saved_step() + 5
    project.set(steps=steps)
    lines = []
    assert run_stage(Stage("train"), lines.extend).kind == "ran"
    assert len(project.lives()) == lives + 1
    assert any(line.startswith("resuming after step") for line in lines)
    assert project.model() == project.undisturbed_model(steps)


def test_a_stopped_guard_lets_training_save(project):
    """In three ways, each of which stops the training that goes on from the one before."""
    project.set(steps=ENDLESS)
    for number, how in enumerate(("signal", "owner gone", "signal to all")):
        guard = next_life(project, lambda: project.start(*GUARD, stdin=subprocess.PIPE, process_group=0))
        if how == "signal":
            guard.send_signal(signal.SIGTERM)
        elif how == "owner gone":
            guard.stdin.close()
        else:
            os.killpg(guard.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        output = guard.stdout.read()
        assert guard.wait() == 143, output
        assert "stopped by SIGTERM: checkpoint saved at step" in output, how
        assert ("resuming after step" in output) == (number > 0), how
        assert project.processes() == [], how
        assert len(project.lives()) == number + 1, how
    whole_again(project)


def test_a_stage_that_saves_slowly_survives_the_kill_of_its_owners_process_group(project):
    """Prefect sends SIGKILL to the group of a cancelled run after 30 s."""
    project.set(steps=ENDLESS, hold=True)
    code = "from flows.stage import *; run_stage(Stage('train'), print)"
    owner = project.start("-c", code, process_group=0)
    project.wait_until(project.has_checkpoint)
    os.killpg(owner.pid, signal.SIGKILL)
    owner.wait()
    time.sleep(1)
    assert project.lives()[0] in [process.pid for process in project.processes()]
    (project.root / "work" / "go").touch()
    project.wait_until(lambda: not project.processes())
    whole_again(project)


def kill_when(condition, project, victim, signum=signal.SIGKILL):
    """A thread that signals a process of the project once training is under way."""

    def act():
        project.wait_until(condition)
        victim().send_signal(signum)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_after_sigkill_the_next_attempt_resumes(project):
    """Of the trainer, then of the dvc of the next attempt."""
    project.set(steps=ENDLESS)
    for victim in ("trainer", "dvc"):
        lives, saved = len(project.lives()), project.saved_step()

        def process(victim=victim):
            trainer = psutil.Process(project.lives()[-1])
            return trainer if victim == "trainer" else next(p for p in trainer.parents() if "repro" in p.cmdline())

        def goes_on(lives=lives, saved=saved):
            return len(project.lives()) > lives and project.saved_step() > saved

        killer = kill_when(goes_on, project, process)
        with pytest.raises(StageFailedError) as caught:
            run_stage(Stage("train"), lambda lines: None)
        killer.join()
        assert caught.value.outcome.kind == "killed", victim
        assert caught.value.outcome.worth_retrying
        assert "signal 9" in str(caught.value)
        assert project.processes() == [], victim
    whole_again(project)


def test_a_stage_over_its_time_saves_even_if_told_while_it_imports(project):
    """A signal sent before the trainer has its handler would be lost. The guard sends it again once there is one."""
    project.set(steps=ENDLESS, slow_start=1.5)
    policy = Policy(timeout_minutes=0.01, grace_seconds=200)  # dvc itself may take long to start
    with pytest.raises(StageFailedError) as caught:
        run_stage(Stage("train", policy), lambda lines: None)
    assert caught.value.outcome.kind == "timeout"
    assert not caught.value.outcome.worth_retrying
    assert project.has_checkpoint()
    assert project.processes() == []


def test_a_deaf_stage_is_killed_after_its_grace_and_dvc_is_not(project):
    project.set(steps=ENDLESS, deaf=True)
    with pytest.raises(StageFailedError) as caught:
        run_stage(Stage("train", Policy(timeout_minutes=0.05, grace_seconds=0.5)), lambda lines: None)
    assert caught.value.outcome.kind == "timeout"
    assert project.processes() == []


def test_two_at_once_the_second_is_busy(project):
    project.set(steps=20, hold=True)
    first = threading.Thread(target=lambda: run_stage(Stage("train"), lambda lines: None))
    first.start()
    project.wait_until(project.has_checkpoint)
    with pytest.raises(StageFailedError, match="is busy") as caught:
        run_stage(Stage("train"), lambda lines: None)
    assert caught.value.outcome.kind == "busy"
    (project.root / "work" / "go").touch()
    first.join()
    assert project.model() == project.undisturbed_model(20)


def test_a_wrong_value_fails_with_its_key(project):
    project.set(rate=-1)
    with pytest.raises(StageFailedError, match=r"exit status 2: error: params\.yaml: train\.rate: given -1") as caught:
        run_stage(Stage("train"), lambda lines: None)
    assert caught.value.outcome.kind == "failed"
    assert not caught.value.outcome.worth_retrying


class TestFiles:
    @pytest.fixture
    def lock(self, project):
        dvcfiles.back_up()
        return project.root / "dvc.lock"

    def test_whole_files_are_left_alone(self, lock):
        before = lock.read_bytes()
        assert dvcfiles.repair() == []
        assert lock.read_bytes() == before

    @pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.9])
    def test_half_a_lock_file_is_restored(self, lock, kept):
        whole = lock.read_bytes()
        lock.write_bytes(whole[: int(kept * len(whole))])
        assert dvcfiles.after_killed_dvc() != []
        assert lock.read_bytes() == whole

    def test_an_empty_lock_file_without_a_copy_is_removed(self, lock):
        dvcfiles.BACKUP.unlink()
        lock.write_bytes(b"")
        assert len(dvcfiles.repair()) == 1
        assert not lock.exists()

    def test_a_broken_rwlock_is_removed(self, lock):
        dvcfiles.RWLOCK.write_text('{"read": {')
        assert len(dvcfiles.repair()) == 1
        assert not dvcfiles.RWLOCK.exists()

    def test_files_that_a_living_dvc_may_be_writing_are_left_alone(self, lock):
        lock.write_bytes(b"")
        with dvcfiles._alone(dvcfiles.TEMPORARY / "lock") as free:
            assert free
            assert dvcfiles.repair() == []
        assert lock.read_bytes() == b""
