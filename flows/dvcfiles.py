"""Repair of `dvc.lock` and `.dvc/tmp/rwlock`: dvc rewrites both in place, so a killed dvc may leave partial files."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

LOCK_FILE = Path("dvc.lock")
TEMPORARY = Path(".dvc/tmp")
RWLOCK = TEMPORARY / "rwlock"
BACKUP = TEMPORARY / "dvc.lock.good"


def repair() -> list[str]:
    """Repair files that a killed dvc left damaged earlier. Returns a line per repair.

    A damaged `dvc.lock` is replaced by its backup, or removed without one: dvc's run cache then restores the stages. A
    damaged `rwlock` is removed. A file that a running dvc holds is left alone.
    """
    done = []
    with _alone(TEMPORARY / "lock") as free:
        if free and not _is_lock_file(LOCK_FILE):
            done.append(_restore())
    with _alone(TEMPORARY / "rwlock.lock") as free:
        if free and not _is_json(RWLOCK):
            RWLOCK.unlink()
            done.append(f"removed the damaged {RWLOCK}")
    return done


def back_up() -> None:
    """Keep a copy of an intact `dvc.lock`; remove the old copy if there is no `dvc.lock`."""
    with _alone(TEMPORARY / "lock") as free:
        if not free:
            return  # a running dvc is about to write; the previous copy is good enough
        if LOCK_FILE.exists():
            temporary = BACKUP.with_suffix(f".{os.getpid()}")
            shutil.copyfile(LOCK_FILE, temporary)
            os.replace(temporary, BACKUP)
        else:
            BACKUP.unlink(missing_ok=True)


def after_killed_dvc() -> list[str]:
    """Repair after our own dvc was killed. Returns a line per repair.

    A partial `dvc.lock` may be valid YAML, so any change is undone. dvc's run cache has what it recorded.
    """
    done = []
    with _alone(TEMPORARY / "lock") as free:
        before = BACKUP.read_bytes() if BACKUP.exists() else None
        now = LOCK_FILE.read_bytes() if LOCK_FILE.exists() else None
        if free and now != before:
            done.append(_restore())
    return done + repair()


def _restore() -> str:
    if BACKUP.exists():
        temporary = LOCK_FILE.with_suffix(".lock.restored")
        shutil.copyfile(BACKUP, temporary)
        os.replace(temporary, LOCK_FILE)
        return f"restored {LOCK_FILE} as it was before dvc was killed"
    LOCK_FILE.unlink(missing_ok=True)
    return f"removed the damaged {LOCK_FILE}; stages come back from the run cache"


def _is_lock_file(path: Path) -> bool:
    """Whether the file is absent, or YAML in the form of a dvc.lock."""
    if not path.exists():
        return True
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError):
        return False
    stages = tree.get("stages", {}) if isinstance(tree, dict) and "schema" in tree else None
    return isinstance(stages, dict) and all(isinstance(entry, dict) and "cmd" in entry for entry in stages.values())


def _is_json(path: Path) -> bool:
    if not path.exists():
        return True
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Try to hold one of dvc's lock files (zc.lockfile: flock). Yields whether no other process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
