"""One process at a time in a folder; what ends the lock, and what does not."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3llada.destinations import LOCK_FILE
from qwen3llada.folder_lock import hold_folder, released_folders

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def released():
    with released_folders():
        yield


def holder(folder: Path, then: Callable[[], None] = lambda: time.sleep(60)):
    """A process that holds `folder` and then does `then`."""
    ours, theirs = CONTEXT.Pipe()

    def work() -> None:
        hold_folder("output_dir", folder, create=True)
        theirs.send("held")
        then()

    process = CONTEXT.Process(target=work)
    process.start()
    assert ours.poll(30)
    return process


def end(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)  # join would wait for its workers as well


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    process = holder(tmp_path / "work")
    for create in (True, False):
        with pytest.raises(ValueError, match=rf"^output_dir='.*work' is in use by process {process.pid} on \S+: two"):
            hold_folder("output_dir", tmp_path / "work", create=create)
    hold_folder("output_dir", tmp_path / "other", create=True)
    end(process)
    hold_folder("output_dir", tmp_path / "work", create=False)  # the system released it
    assert f"process {os.getpid()} on" in (tmp_path / "work" / LOCK_FILE).read_text()


def test_a_worker_of_a_killed_run_does_not_keep_the_lock(tmp_path):
    ours, theirs = CONTEXT.Pipe()

    def fork_worker() -> None:
        if (worker := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        theirs.send(worker)
        time.sleep(60)

    process = holder(tmp_path, fork_worker)
    assert ours.poll(30)
    worker = ours.recv()
    try:
        with pytest.raises(ValueError, match="in use"):
            hold_folder("output_dir", tmp_path, create=True)
        end(process)
        os.kill(worker, 0)  # the worker is alive
        hold_folder("output_dir", tmp_path, create=True)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_same_process_may_ask_again_and_releases_at_the_end(tmp_path):
    with released_folders():
        hold_folder("output_dir", tmp_path / "work", create=True)
        hold_folder("output_dir", tmp_path / "work", create=True)
        shutil.rmtree(tmp_path / "work")
        hold_folder("output_dir", tmp_path / "work", create=True)  # another folder of the same name
        assert (tmp_path / "work" / LOCK_FILE).is_file()
    end(holder(tmp_path / "work"))


def test_nothing_is_made_where_nobody_works(tmp_path):
    hold_folder("output_dir", tmp_path / "work", create=False)
    (tmp_path / "old").mkdir()
    hold_folder("output_dir", tmp_path / "old", create=False)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old"]
