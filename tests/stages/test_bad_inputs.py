"""Each bad input: one clear line on stderr, the right exit status, nothing half-written."""

import errno
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SMALL = {"people": 4, "documents": 100, "heldout_documents": 10, "bpe_tokens": 300, "hidden_size": 16, "layers": 1}
SMALL |= {"heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate_size": 32, "two_turns": 0}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> Path:
    """A project folder with params.yaml for a very small world, and its data/raw."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    edit(folder, builtin=SMALL)
    status, _, error = stage(folder, "download")
    assert status == 0, error
    return folder


@pytest.fixture
def project(downloaded: Path, tmp_path: Path) -> Path:
    shutil.copytree(downloaded, tmp_path / "project")
    return tmp_path / "project"


def edit(folder: Path, **sections: dict) -> None:
    yaml = YAML()
    tree = yaml.load((folder / "params.yaml").read_text(encoding="utf-8"))
    for name, values in sections.items():
        tree[name].update(values)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)


def stage(folder: Path, name: str, *argv: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of `python -m stages.NAME` in `folder`, run in this process to save the imports."""
    import contextlib
    import io

    out, error = io.StringIO(), io.StringIO()
    before, arguments = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = [name, *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as exit_:
            runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)
    finally:
        os.chdir(before)
        sys.argv = arguments
    return exit_.value.code or 0, out.getvalue(), error.getvalue()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(folder: Path, name: str, *argv: str, status: int, words: list[str]) -> None:
    """The stage ends with `status` and a last line with all of `words`; the folder is unchanged."""
    before = files(folder)
    code, _, error = stage(folder, name, *argv)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (status, 1), error
    assert "Traceback" not in error
    assert all(word in lines[0] for word in words), lines[0]
    assert files(folder) - {"reports"} == before - {"reports"}


def test_missing_params_file(tmp_path):
    refused(tmp_path, "convert", status=2, words=["params.yaml", "no such parameter file"])


def test_missing_parameter_set(project):
    refused(project, "convert", "--params", "configs/none.yaml", status=2, words=["configs/none.yaml", "no such"])


def test_unknown_key(project):
    edit(project, convert={"maks_token": "auto"})
    refused(project, "download", status=2, words=["params.yaml", "convert.maks_token", "unknown key", "mask_token"])


def test_wrong_type(project):
    edit(project, pretrain={"micro_batch_size": "many"})
    refused(project, "pretrain", status=2, words=["params.yaml", "pretrain.micro_batch_size", "'many'", "integer"])


def test_out_of_range_on_the_command_line(project):
    refused(project, "sample", "--steps", "0", status=2, words=["command line", "steps", "0", "1"])


def test_settings_that_contradict_each_other(project):
    argv = ("--bf16", "--fp16")
    refused(project, "pretrain", *argv, status=2, words=["pretrain", "bf16", "fp16"])


def test_missing_source_folder(project):
    refused(project, "convert", "--src", "data/raw/nothing", status=1, words=["data/raw/nothing"])


def test_llama_checkpoint(project):
    config = project / "data/raw/model/config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    refused(project, "convert", status=1, words=["llama", "qwen3"])


def test_truncated_weights(project):
    weights = project / "data/raw/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(project, "convert", status=1, words=["model.safetensors"])


def test_mask_id_outside_the_vocabulary(project):
    refused(project, "convert", "--mask_token", "999999", status=1, words=["999999", "mask"])


def test_full_disk_while_converting(project, monkeypatch):
    """The copy of the weights fails half-way with ENOSPC; what was there before stays, and nothing new is left."""
    assert stage(project, "convert")[0] == 0
    before = files(project)
    weights = (project / "out/qwen3llada-converted/model.safetensors").read_bytes()

    def full(source, destination, *args, **kwargs):
        Path(destination).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))

    for name in ("copyfile", "copy", "copy2", "copyfileobj"):
        monkeypatch.setattr(shutil, name, full)
    refused(project, "convert", status=1, words=["no space left", "out/qwen3llada-converted"])
    assert files(project) == before
    assert (project / "out/qwen3llada-converted/model.safetensors").read_bytes() == weights


def test_empty_corpus(project, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    data = {"name": str(tmp_path / "empty.jsonl"), "heldout_fraction": 0.1}
    edit(project, pretrain_data=data)
    refused(project, "download", status=1, words=["empty.jsonl"])


def test_corpus_without_a_text_column(project):
    for split in ("train", "heldout"):
        (project / f"data/raw/text/{split}/{split}.jsonl").write_text('{"number": 1}\n{"number": 2}\n')
    shutil.copytree(project / "data/raw/conversations", project / "data/validated")
    refused(project, "tokenize_pack", status=1, words=["text", "number"])


def test_conversation_without_a_pair(project):
    path = project / "data/raw/conversations/train/train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps({"conversations": [{"from": "human", "value": "Anyone there?"}]})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, _, error = stage(project, "validate")
    assert code == 1
    assert "pairs" in error
    assert "2" in error
    assert "Anyone there?" in error
    assert not (project / "data/validated").exists()


def test_destinations_that_are_not_the_projects(project):
    (project / "texts").mkdir()
    (project / "texts/a.txt").write_text("mine")
    for dst, words in (
        ("texts", "dst='texts' holds a.txt"),
        ("data/raw/text", "data/raw/text' holds heldout, which this project did not write"),
        ("data/raw/model", "must not be the input src"),
        (".", "must not be the project's folder"),
        ("data", "data' must not be the input src"),
    ):
        refused(project, "convert", "--dst", dst, status=1, words=[words])
    # before a download begins
    refused(project, "convert", "--src", "Nobody/Nothing", "--dst", "texts", status=1, words=["holds a.txt"])
    edit(project, convert={"dst": "a\0b"})
    refused(project, "convert", status=1, words=[r"dst='a\x00b' must not hold a NUL"])


def test_a_check_before_dvc_removes_outputs(project, monkeypatch):
    from qwen3llada.params import check

    monkeypatch.chdir(project)
    (project / "texts").mkdir()
    (project / "texts/a.txt").write_text("mine")
    check()
    for section, values, words in (
        ("convert", {"dst": "texts"}, "convert.dst='texts' holds a.txt"),
        ("pretrain", {"dst": "texts"}, "pretrain.dst='texts' holds a.txt"),
        ("sft", {"reports": "."}, "sft.reports='.' must not be the project's folder"),
        ("sft", {"output_dir": "out/sft", "dst": "out/sft"}, "sft.dst='out/sft' must not be sft.output_dir too"),
    ):
        before = (project / "params.yaml").read_text()
        edit(project, **{section: values})
        with pytest.raises(ValueError, match="^" + words.replace(".", r"\.")):
            check()
        (project / "params.yaml").write_text(before)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("model", {"source": "/no/such/checkpoint"}, "model.source: /no/such/checkpoint: no such file or folder"),
        ("pretrain_data", {"name": "my/*.txt", "heldout_fraction": 0.1}, "pretrain_data.name: my/*.txt: no such file"),
        ("sft_data", {"name": "my/chat.jsonl", "heldout_fraction": 0.1}, "sft_data.name: my/chat.jsonl: no such file"),
        ("sft_data", {"name": "owner/data", "heldout_name": "no.csv"}, "sft_data.heldout_name: no.csv: no such file"),
    ],
)
def test_a_source_that_is_not_there_is_reported_before_dvc_removes_the_data(
    project, monkeypatch, section, values, words
):
    from qwen3llada.params import _tree, check, load

    monkeypatch.chdir(project)
    edit(project, **{section: values})
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        check()
    tree = _tree(load())
    params = {"model": tree["model"]} | {
        f"{s}.{k}": v for s in ("pretrain_data", "sft_data") for k, v in tree[s].items()
    }
    lock = {"stages": {"download": {"params": {"params.yaml": params}}}}
    (project / "dvc.lock").write_text(json.dumps(lock))
    check()  # download has run with these parameters: it does not run again, and its sources may be gone


def test_a_source_that_is_there_or_on_the_hub_is_accepted(project, monkeypatch):
    from qwen3llada.params import check

    monkeypatch.chdir(project)
    (project / "my").mkdir()
    (project / "my/a.txt").write_text("mine")
    edit(project, model={"source": "owner/model"}, pretrain_data={"name": "my/*.txt", "heldout_fraction": 0.1})
    check()


def test_sources_that_are_the_stages_own_output(project):
    own = {"name": "data/raw/text", "heldout_fraction": 0.1}
    words = ["data/raw/text='data/raw/text' must not be the input pretrain_data.name"]
    edit(project, pretrain_data=own)
    refused(project, "download", status=1, words=words)
    edit(project, pretrain_data=own | {"name": "data/*/text/train/*.jsonl"})
    refused(project, "download", status=1, words=words)
    profile = project / "reports/validation/profile.json"
    profile.parent.mkdir(parents=True)
    profile.write_text("{}")
    edit(project, validate={"baseline": "reports/validation/profile.json"})
    refused(
        project, "validate", status=1, words=["reports/validation", "must not be the input baseline", "nor hold it"]
    )
    assert profile.read_text() == "{}"


def test_training_without_data(project):
    assert stage(project, "convert")[0] == 0
    refused(project, "sft", "--model", "out/qwen3llada-converted", status=1, words=["data/tokenized/sft"])


@pytest.mark.parametrize("defect", [ValueError, TypeError, KeyError, RuntimeError])
def test_a_defect_of_the_program_keeps_its_traceback(project, monkeypatch, defect):
    """Only our own errors about inputs are one line. Python shows the traceback of others, with status 1."""
    from qwen3llada.modeling import convert

    def broken(*_):
        raise defect("a defect")

    monkeypatch.setattr(convert, "convert_checkpoint", broken)
    with pytest.raises(defect, match="a defect"):
        stage(project, "convert")


def test_an_input_error_is_one_line(project, monkeypatch):
    from qwen3llada.errors import InputError
    from qwen3llada.modeling import convert

    def refuse(*_):
        raise InputError("src: given x,\n  must be y")

    monkeypatch.setattr(convert, "convert_checkpoint", refuse)
    refused(project, "convert", status=1, words=["error: src: given x, must be y"])


@pytest.mark.parametrize("argv", [("--bf16", "1"), ("--optim.betas", "[nan,0.9]"), ("--epochs", "9" * 39)])
def test_values_outside_their_range_name_the_knob(project, argv):
    refused(project, "pretrain", *argv, status=2, words=["command line", argv[0].lstrip("-"), argv[1]])


def test_lengths_beyond_the_models_positions(project):
    words = ["max_length=4096", "max_position_embeddings=2048"]
    edit(project, pretrain={"max_length": 4096})
    shutil.copytree(project / "data/raw/conversations", project / "data/validated")
    refused(project, "tokenize_pack", status=1, words=["pretrain.max_length=4096", *words])
    assert stage(project, "convert")[0] == 0
    refused(project, "pretrain", status=1, words=words)
    argv = ("--max_length", "64", "--attention.block_length", "4096")
    refused(project, "pretrain", *argv, status=1, words=["attention.block_length=4096", words[1]])


def test_prompts_that_cannot_be_answered(project):
    assert stage(project, "convert")[0] == 0
    latin = project / "latin.jsonl"
    latin.write_bytes('"Où ?"\n'.encode("latin-1"))
    argv = ("--model", "out/qwen3llada-converted")
    refused(project, "sample", *argv, "--prompts", str(latin), status=1, words=["latin.jsonl", "UTF-8"])
    long = (*argv, "--prompt", "Who?", "--prompt", "a b " * 2000)
    refused(project, "sample", *long, status=1, words=["prompts[1]", "max_position_embeddings=2048"])
    (project / "out/qwen3llada-converted/model.safetensors").write_bytes(b"")
    refused(project, "sample", *argv, "--prompt", "Who?", status=1, words=["out/qwen3llada-converted", "header"])
