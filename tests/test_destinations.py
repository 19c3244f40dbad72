"""Nothing that this project did not write is replaced: bad destinations give one line, and all files stay."""

import json
import os
from pathlib import Path

import pytest

from qwen3llada import destinations
from qwen3llada.artifacts import MARKER, mark, new_folder
from qwen3llada.destinations import ANSWERS, MODEL, OUTPUT, PAGE, REPORTS, WORK, check_destinations

KINDS = {"model": MODEL, "work": WORK, "reports": REPORTS, "answers": ANSWERS, "page": PAGE}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """A project folder as working directory: parameters, data, texts of the user, a model and its links."""
    folder = tmp_path / "project"
    write(folder, "params.yaml", "dvc.yaml", ".git/HEAD", "data/train/tokens.arrow", "texts/a.txt", "texts/b.txt")
    write(folder, "source/config.json", "source/model.safetensors")
    (folder / "link").symlink_to("texts")
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(path, message, kind=MODEL, knob="dst", reads=None, **others) -> None:
    before = contents(Path.cwd().parent)
    writes = {knob: (path, kind)} | {name: (Path(p), KINDS[k]) for name, (p, k) in others.items()}
    with pytest.raises(ValueError, match=message) as error:
        check_destinations(writes, {"model": "source", "data": "data"} | (reads or {}))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{knob}=")
    assert contents(Path.cwd().parent) == before


def allowed(path, kind=MODEL, reads=None, **others) -> None:
    writes = {"dst": (path, kind)} | {name: (Path(p), KINDS[k]) for name, (p, k) in others.items()}
    check_destinations(writes, {"model": "source", "data": "data", "src": "Qwen/Qwen3-0.6B"} | (reads or {}))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "must not be the project's folder|must be a file"),
        (".", "must not be the project's folder|must be a file"),
        ("..", "must end with a name"),
        ("new/..", "must end with a name"),
        ("/", "must end with a name"),
        ("../../..", "must end with a name"),
        (".git/model", "must not lie in .git"),
        ("source", "must not be the input model|must be a file"),
        ("source/config.json", "must be a folder|must not lie in the input model"),
        ("./texts/../source", "must not be the input model|must be a file"),
        ("source/new", "must not lie in the input model"),
        ("data/train", "must not lie in the input data|must be a file"),
        ("texts", "holds a.txt, which this project did not write|must be a file"),
        ("params.yaml", "must be a folder|exists and"),
        ("link", r"must not be a link \(it points to texts\)"),
        ("params.yaml/new", "params.yaml is none"),
        ("/dev/null", "must be a folder|must be a file"),
        ("/dev/stdout", "must not be a link"),
        ("/proc", "must not be a mount point|must be a file"),
        ("/proc/new", "cannot be written"),
        ("a\0b", "must not hold a NUL character"),
        ("a" * 250, "must have names of at most"),
        ("new/" + "a" * 300 + "/b", "must have names of at most"),
        ("/".join(["abcdefghi"] * 420), "must have at most"),
        ("\ud800", "a name that the file system can encode"),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, str) else "",
)
def test_what_no_stage_may_replace(path, message, kind):
    refused(path, message, kind)


def test_what_holds_the_project_or_an_input(tmp_path):
    refused(tmp_path, "must not be the project's folder, nor hold it")
    refused("big", "must not be the input model='big/model', nor hold it", reads={"model": mkdir("big/model")})
    elsewhere = mkdir(tmp_path / "elsewhere/data")
    Path("out").symlink_to(tmp_path / "elsewhere")
    refused(elsewhere.parent, "must not be the input data", reads={"data": "out/data"})  # the same folder
    refused("out/data", "must not be the input data", reads={"data": elsewhere})


def test_a_destination_behind_a_link_is_taken_for_what_it_is(tmp_path):
    mkdir(tmp_path / "scratch")
    Path("out").symlink_to(tmp_path / "scratch")
    allowed("out/new")
    write(tmp_path / "scratch/texts", "a.txt")
    refused("out/texts", "holds a.txt")


def mkdir(path) -> Path:
    Path(path).mkdir(parents=True)
    return Path(path)


def test_what_is_new_or_empty_is_allowed():
    mkdir("empty")
    write(Path("out"), ".gitignore")  # DVC writes it beside its outputs
    for path, kind in (("new", MODEL), ("a/b/c", WORK), ("empty", MODEL), ("empty", WORK), ("empty", REPORTS)):
        allowed(path, kind)
    allowed("out", REPORTS)
    allowed("new.jsonl", ANSWERS)
    allowed("new/trace.html", PAGE)
    assert not Path("new").exists()
    assert not list(Path("empty").iterdir())


def test_a_marked_folder_is_replaced_unless_somebody_put_something_in_it():
    with new_folder("model") as folder:
        write(folder, "config.json", "adapter/weights")
        mark(folder)
    allowed("model")
    write(Path("model"), "notes.txt")
    refused("model", "holds notes.txt, which this project did not write")
    Path("model/notes.txt").unlink()
    write(Path("model"), "adapter/notes.txt")
    refused("model", "holds adapter/notes.txt")
    (Path("model") / MARKER).write_text('{"files": 3}')
    with pytest.raises(ValueError, match="damaged: it must list the files"):
        allowed("model")


def test_the_marker_has_the_same_bytes_everywhere():
    for folder, order in (("one", ("b", "a/c")), ("two", ("a/c", "b"))):
        write(Path(folder), *order)
        mark(Path(folder))
        mark(Path(folder))  # the marker does not list itself
    assert Path("one", MARKER).read_bytes() == Path("two", MARKER).read_bytes()
    assert json.loads(Path("one", MARKER).read_text())["files"] == ["a/c", "b"]


def test_models_from_before_the_marker():
    write(Path("old"), "model.safetensors", "tokenizer.json", "adapter/adapter_config.json")
    refused("old", "holds adapter, which")  # no configuration says that it is ours
    Path("old/config.json").write_text('{"model_type": "qwen3"}')
    refused("old", "holds adapter, which")
    Path("old/config.json").write_text('{"model_type": "qwen3llada"}')
    allowed("old")
    write(Path("old"), "thesis.txt")
    refused("old", "holds thesis.txt")
    write(Path("checkpoint"), "trainer_state.json", "model.safetensors")
    Path("checkpoint/config.json").write_text('{"model_type": "qwen3llada"}')
    refused("checkpoint", "holds trainer_state.json")
    write(Path("lora"), "adapter_model.safetensors", "README.md")
    Path("lora/adapter_config.json").write_text('{"auto_mapping": {"base_model_class": "LlamaForCausalLM"}}')
    refused("lora", "holds README.md")
    Path("lora/adapter_config.json").write_text('{"auto_mapping": {"base_model_class": "Qwen3LLadaForMaskedLM"}}')
    allowed("lora")


def test_working_folders():
    write(Path("work"), "checkpoints/step-5/trainer_state.json", "checkpoints/.step-10.partial/model.safetensors")
    allowed("work", WORK)
    write(Path("work"), "checkpoints/best/pytorch_model.bin")
    refused("work", "holds checkpoints/best", WORK)
    refused("texts", "holds a.txt", WORK)
    write(Path("locked"), destinations.LOCK_FILE, "log.txt")
    allowed("locked", WORK)


def test_report_folders():
    write(
        Path("curves"),
        "summary.json",
        "speed.json",
        "speed.jsonl",
        "metrics.json",
        ".gitignore",
        "plots/metrics/train/loss.tsv",
    )
    allowed("curves", REPORTS)
    write(Path("curves"), "plots/images/mine.png")
    refused("curves", "holds plots/images/mine.png", REPORTS, knob="reports")
    write(Path("all"), "analyze.json", "summary.json")
    refused("all", "holds analyze.json", REPORTS, knob="reports")


def test_what_a_killed_process_left_unfinished_counts_as_its_file():
    write(Path("curves"), ".heldout.jsonl.89e3e010.partial", ".mode.0123abcd.partial")
    allowed("curves", REPORTS)
    write(Path("curves"), ".notes.txt.89e3e010.partial")
    refused("curves", "holds .notes.txt.89e3e010.partial", REPORTS)


def test_destinations_of_one_run_do_not_lose_one_another():
    for knob, (path, kind) in {"output_dir": ("x", "work"), "reports": ("x", "reports")}.items():
        refused("x", f"must not be {knob} too", **{knob: (path, kind)})
    refused("x/checkpoints", "must not lie in output_dir='x/checkpoints'", output_dir=("x", "work"))
    refused("x/checkpoints/step-1", "must not lie in output_dir='x/checkpoints'", output_dir=("x", "work"))
    refused("x/work", "must not lie in dst='x', which is replaced", WORK, knob="output_dir", dst=("x", "model"))
    refused("x/curves", "must not lie in dst='x'", REPORTS, knob="reports", dst=("x", "model"))
    refused("x/model", "must not lie in reports='x'", reports=("x", "reports"))
    write(Path("run"), "model/config.json", "curves/summary.json", "checkpoints/step-1/trainer_state.json")
    Path("run/model/config.json").write_text('{"model_type": "qwen3llada"}')
    check_destinations(
        {"dst": ("run/model", MODEL), "output_dir": ("run", WORK), "reports": ("run/curves", REPORTS)}, {}
    )


def test_fixed_outputs_are_not_their_own_source():
    mkdir("raw/text")
    allowed("raw/text", OUTPUT)
    refused("raw/text", "must not be the input pretrain_data.name", OUTPUT, reads={"pretrain_data.name": "raw/text"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission():
    mkdir("closed").chmod(0o500)
    refused("closed/new", "cannot be written: .*closed: Permission denied")
    refused("closed", "cannot be written", WORK)
