"""Outputs are complete or absent, and never written in place."""

import errno
import fcntl
import json
import os
import shutil

import pytest

from qwen3llada.artifacts import (
    file_digest,
    new_file,
    new_folder,
    new_together,
    read_json,
    read_jsonl,
    text_digest,
    whole,
    write_json,
    write_jsonl,
)
from qwen3llada.errors import InputError


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_json_round_trip_makes_parents_and_keeps_unicode(tmp_path):
    value = {"text": "naïve 日本", "numbers": [1, 2.5, None, True]}
    write_json(tmp_path / "a" / "b" / "x.json", value)
    assert read_json(tmp_path / "a" / "b" / "x.json") == value
    assert "日本" in (tmp_path / "a" / "b" / "x.json").read_text(encoding="utf-8")
    assert os.listdir(tmp_path / "a" / "b") == ["x.json"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == [1]


def test_jsonl_round_trip_is_a_line_per_row(tmp_path):
    rows = [{"i": i, "line": "a\nb\u2028c"} for i in range(5)]
    write_jsonl(tmp_path / "x.jsonl", iter(rows))
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows
    assert (tmp_path / "x.jsonl").read_bytes().count(b"\n") == len(rows)


def test_reading_errors_name_file_and_line(tmp_path):
    (tmp_path / "bad.json").write_text('{\n"a": }')
    with pytest.raises(ValueError, match=r"bad\.json: line 2 is not JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    rows = read_jsonl(tmp_path / "bad.jsonl")
    assert next(rows) == {"a": 1}
    with pytest.raises(ValueError, match=r"bad\.jsonl: line 3 is not JSON"):
        next(rows)
    with pytest.raises(FileNotFoundError):
        read_jsonl(tmp_path / "absent.jsonl")


def test_a_linked_file_is_replaced_not_rewritten(tmp_path):
    """DVC's cache holds hard links of outputs; writing through one would corrupt the cache."""
    write_json(tmp_path / "x.json", "old")
    os.link(tmp_path / "x.json", tmp_path / "cached")
    write_json(tmp_path / "x.json", "new")
    assert (read_json(tmp_path / "cached"), read_json(tmp_path / "x.json")) == ("old", "new")


def test_failing_rows_leave_the_old_file_and_nothing_else(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [1])

    def rows():
        yield 2
        raise RuntimeError("broken source")

    with pytest.raises(RuntimeError, match="broken source"):
        write_jsonl(tmp_path / "x.jsonl", rows())
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [1]
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_new_folder_replaces_all_of_the_old_content(tmp_path):
    target = tmp_path / "parent" / "model"
    for name in ("old", "new"):
        with new_folder(target) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / name).write_text(name)
            assert not (target / "deep" / name).exists()
    assert os.listdir(target / "deep") == ["new"]
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failing_folder_leaves_the_old_one_and_nothing_else(tmp_path, error):
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("old")

    def replace():
        with new_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("new")
            raise error

    with pytest.raises(error):
        replace()
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_failing_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("old")
    rename = os.rename

    def broken(source, destination):
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="broken"), new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_what_a_killed_run_left_is_removed(tmp_path):
    with new_folder(tmp_path / "model") as folder:
        left = folder
    left.mkdir()
    (left / "half").write_text("half")
    with new_folder(tmp_path / "model") as folder:
        (folder / "whole").write_text("whole")
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["whole"]


def test_outputs_reach_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    order = []
    flush, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda d: (order.append(os.readlink(f"/proc/self/fd/{d}")), flush(d)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("rename"), rename(a, b)))
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("x")
    before = order[: order.index("rename")]
    assert {os.path.basename(path) for path in before} == {"weights", ".model.partial"}
    assert order[-1] == str(tmp_path)


@pytest.mark.parametrize("context", [new_file, new_folder])
def test_full_disk_is_one_line_with_path_and_size(tmp_path, context):
    target = tmp_path / "out"

    def write():
        with context(target, size=12345) as temporary:
            (temporary / "x" if context is new_folder else temporary).write_text("half")
            full_disk()

    with pytest.raises(OSError, match="no space left on the disk for") as caught:
        write()
    message = str(caught.value)
    assert str(target) in message
    assert "12,345 bytes" in message
    assert "\n" not in message
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("context", [new_file, new_folder])
def test_what_cannot_fit_is_not_begun(tmp_path, context):
    begun = []

    def write():
        with context(tmp_path / "out", size=2**60):
            begun.append(True)

    with pytest.raises(OSError, match=r"1,152,921,504,606,846,976 bytes to write, [\d,]+ bytes free"):
        write()
    assert begun == []
    assert os.listdir(tmp_path) == []


def test_full_disk_reported_by_safetensors_is_recognised(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="no space left on the disk for"), new_folder(tmp_path / "out"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(PermissionError, match=r"^denied$"), new_folder(tmp_path / "out"):
        raise PermissionError("denied")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_written_files_have_the_permissions_of_the_umask(tmp_path, mask):
    """Also if a library makes them readable only by their owner, as safetensors does, and in any folder."""

    def private(path):
        path.write_text("x")
        path.chmod(0o600)

    elsewhere = tmp_path.with_suffix(".elsewhere")
    private(elsewhere)
    before = os.umask(mask)
    try:
        write_json(tmp_path / "x.json", 1)
        with new_file(tmp_path / "y") as temporary:
            private(temporary)
        with new_folder(tmp_path / "folder") as folder:
            (folder / "deep").mkdir(mode=0o700)
            private(folder / "deep/model.safetensors")
            (folder / "link").symlink_to(elsewhere)
        with new_together([tmp_path / "a", tmp_path / "b"]) as (a, b):
            a.mkdir()
            private(a / "model.safetensors")
            private(b)
    finally:
        os.umask(before)
    assert elsewhere.stat().st_mode & 0o777 == 0o600  # a link is not followed
    made = {path for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert len(made) == 8
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_a_shared_folder_keeps_its_group(tmp_path):
    """The set-group-ID bit of a folder is none of the permissions that the umask gives."""
    with new_folder(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
        (folder / "deep").chmod(0o2700)
    assert (tmp_path / "folder/deep").stat().st_mode & 0o2000


def state(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_together(folder, content):
    with new_together([folder / "a", folder / "b", folder / "record.json"]) as (a, b, record):
        for made in (a, b):
            made.mkdir()
            (made / f"{content}.txt").write_text(content)
        record.write_text(content)


@pytest.mark.parametrize("failing", [None, *range(6)])
def test_outputs_that_change_together(tmp_path, monkeypatch, failing):
    """Each of the six renames fails once: three set old paths aside, three put new ones in place."""
    write_together(tmp_path, "old")
    before, rename, calls = state(tmp_path), os.rename, []
    assert set(before.values()) == {"old"}

    def counted(source, target):
        calls.append(target)
        if len(calls) - 1 == failing:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", counted)
    if failing is None:
        write_together(tmp_path, "new")
        assert state(tmp_path) == {"a/new.txt": "new", "b/new.txt": "new", "record.json": "new"}
        assert len(calls) == 6
    else:
        with pytest.raises(OSError, match="broken"):
            write_together(tmp_path, "new")
        assert state(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "record.json"]


def test_what_another_process_is_writing_is_refused_and_left_alone(tmp_path):
    """A lock is of an opened folder, so this process stands for both."""
    with new_folder(tmp_path / "model") as first:
        (first / "weights").write_text("first")
        with pytest.raises(InputError, match="model: another process is writing it"), new_folder(tmp_path / "model"):
            pytest.fail("two writers")
        with new_folder(tmp_path / "other") as other:
            (other / "weights").write_text("other")
    assert state(tmp_path) == {"model/weights": "first", "other/weights": "other"}
    write_together(tmp_path, "old")
    with new_together([tmp_path / "a", tmp_path / "record.json"]) as (a, record):
        with pytest.raises(InputError, match=f"{tmp_path}: another process is writing it"):
            write_together(tmp_path, "second")
        a.write_text("first")
        record.write_text("first")
    assert state(tmp_path) == {
        "model/weights": "first",
        "other/weights": "other",
        "a": "first",
        "b/old.txt": "old",
        "record.json": "first",
    }
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    for content in ("old", "new"):
        write_together(tmp_path, content)
    assert state(tmp_path)["record.json"] == "new"
    (line,) = capsys.readouterr().err.splitlines()  # once
    assert line == f"warning: {tmp_path} cannot be locked (No locks available): no second run must use it"


def test_outputs_stay_if_somebody_removes_a_new_one_before_it_is_renamed(tmp_path, monkeypatch):
    write_together(tmp_path, "old")
    before, swap = state(tmp_path), whole._swap

    def swap_without_one(paths, temporaries):
        shutil.rmtree(temporaries[1])
        swap(paths, temporaries)

    monkeypatch.setattr(whole, "_swap", swap_without_one)
    with pytest.raises(FileNotFoundError):
        write_together(tmp_path, "new")
    assert state(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "record.json"]


@pytest.mark.parametrize("renames", range(1, 6))
def test_a_process_killed_among_the_renames_leaves_no_false_record(tmp_path, renames):
    write_together(tmp_path, "old")
    if (child := os.fork()) == 0:
        rename, done = os.rename, []

        def killed(source, target):
            if len(done) == renames:
                os._exit(9)
            done.append(rename(source, target))

        os.rename = killed
        write_together(tmp_path, "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "record.json").exists()
    write_together(tmp_path, "third")
    assert state(tmp_path) == {"a/third.txt": "third", "b/third.txt": "third", "record.json": "third"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "record.json"]


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [{"a": 1}, {"a": 2}]
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("encoding", "seems"),
    [
        ("latin-1", "ISO-8859-1"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32", "UTF-32"),
    ],
)
def test_another_encoding_is_named(tmp_path, encoding, seems):
    text = json.dumps({"prompt": "Wo liegt Österreich, und wer fährt über die Brücke?"}, ensure_ascii=False) + "\n"
    for name, read in (("x.jsonl", lambda path: list(read_jsonl(path))), ("x.json", read_json)):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(InputError, match=rf"{name}: .*not UTF-8 text.*it seems to be {seems}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_digest_is_sha_256(tmp_path):
    """The value of "abc" is FIPS 180-2's example."""
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_text("abc")
    assert text_digest("abc") == known
    assert file_digest(tmp_path / "abc") == known[:16]
