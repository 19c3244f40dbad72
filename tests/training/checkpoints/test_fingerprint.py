"""The fingerprint contains everything that determines the weights, and nothing else."""

import ast
import shutil
import sys
from pathlib import Path

import pytest
from runs import changed

from qwen3llada.batches.settings import batch_settings
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.training.checkpoints import fingerprint as module
from qwen3llada.training.checkpoints.fingerprint import (
    CODE,
    PACKAGE,
    STREAM_CODE,
    bare_code,
    differences,
    hash_code,
    run_fingerprint,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
from test_layers import imported

# Modules imported by training that cannot change a weight. New modules must be added here or to CODE.
DECIDES_NOTHING = {
    # writing, showing, measuring and checking
    *("encodings.py", "errors.py", "folder_lock.py", "section.py"),
    *(
        f"artifacts/{name}.py"
        for name in ("digests", "full_disk", "json_files", "marker", "on_disk", "one_writer", "whole")
    ),
    *("destinations/check.py", "destinations/kinds.py"),
    *("modeling/positions.py", "modeling/qwen3_checkpoint.py", "modeling/shards.py", "modeling/tokenizer_files.py"),
    "training/model_card.py",
    # the sampler's knobs, of which `evaluate` has some, and the check of them
    *(f"commandline/{name}.py" for name in ("flags", "messages", "models", "yaml_file")),
    *("knob_variables.py", "tracked.py", "sampling/dialogue/extraction.py", "sampling/keyed_gumbel.py"),
    *("sampling/params.py", "sampling/remasking.py", "sampling/unmasking.py"),
    *("training/start/claiming.py", "training/start/launcher.py", "training/watch/settings.py"),
    *("evaluation/eval_loss.py", "objective/loss_by_level.py", "evaluation/params.py"),
    *("training/checkpoints/folder.py", "training/checkpoints/fingerprint.py", "training/checkpoints/resuming.py"),
    "training/checkpoints/background.py",
    *(
        "training/watch/flops.py",
        "training/start/layer_bytes.py",
        "training/start/memory_estimate.py",
        "training/start/out_of_memory.py",
        "training/watch/peak_memory.py",
        "training/watch/monitor.py",
    ),
    *("training/watch/step_stats.py", "training/stopping.py", "training/watch/curves.py", "training/watch/trackers.py"),
    *("training/params.py", "training/run_params.py", "objective/params.py"),  # their values are compared
    # from files to tokens before training: the result is compared
    *(
        "corpus/tokens/packing.py",
        "corpus/tokens/tokenizer.py",
        "corpus/fetch/configurations.py",
        "corpus/fetch/local.py",
        "corpus/fetch/sources.py",
        "corpus/fetch/selection.py",
        "corpus/fetch/slices.py",
    ),
    *(
        "corpus/conversations/prompts.py",
        "corpus/conversations/records.py",
        "corpus/tokens/histogram.py",
        "corpus/fetch/copying.py",
    ),
    *(
        "corpus/files/ordered_map.py",
        "corpus/conversations/fields.py",
        "corpus/conversations/mapping.py",
        "corpus/text/column.py",
    ),
}


def mark(params, *, seed=1, total_steps=6, template="plain", **layout):
    tokenizer = load_tokenizer(params.model)
    layout = {"seed": seed, "micro_batch_size": params.micro_batch_size} | layout
    layout["gradient_accumulation_steps"] = params.gradient_accumulation_steps
    batches = batch_settings(params, tokenizer, training=True, **layout)
    return run_fingerprint(params, batches=batches, total_steps=total_steps, template=template)


def test_fingerprint_tells_runs_apart(pretraining, tmp_path):
    same = changed(pretraining, save_steps=3, num_workers=2, micro_batch_size=1, gradient_accumulation_steps=4)
    assert mark(pretraining) == mark(same)
    # knobs that people change for lack of memory must not make checkpoints unusable
    assert mark(pretraining) == mark(changed(pretraining, gradient_checkpointing=True, cuda_graphs="never"))
    assert mark(pretraining) == mark(changed(pretraining, telemetry={"trackers": ["tensorboard"]}))
    noise = pretraining.noise.model_dump() | {"schedule": "cosine"}
    other = mark(changed(pretraining, noise=noise, loss_impl="dllm"), micro_batch_size=4)
    assert differences(mark(pretraining), other) == (
        "loss_impl is 'dllm' there and 'guidelines' here, noise.schedule is 'cosine' there and 'uniform' here,"
        " step_size is 8 there and 4 here"
    )
    shutil.copytree(pretraining.data, tmp_path / "data")
    moved = changed(pretraining, data=tmp_path / "data")
    assert mark(pretraining) == mark(moved)
    tokens = tmp_path / "data/train/tokens.arrow"
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.write_bytes(content)
    assert differences(mark(pretraining), mark(moved)) == "other data files"


def test_the_config_of_the_first_model_counts(pretraining, tmp_path):
    shutil.copytree(pretraining.model, tmp_path / "model")
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    other = mark(changed(pretraining, model=tmp_path / "model"))
    assert differences(mark(pretraining), other) == "other model files"


SOURCE = '''
"""What it is for."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a import B

class Knobs(Section):
    """Knobs."""
    size: int = Field(3, ge=1, description="Its size")

def f(x: "B"):
    """Twice x."""
    return 2 * x  # and no more

def g():
    """Not there yet."""
'''
PLAIN = """
from typing import TYPE_CHECKING
class Knobs(Section):
    size: int = Field(3, ge=1)
def f(x: 'B'):

    return (2 *
            x)
def g():
    pass
"""


def test_comments_docstrings_and_layout_do_not_count():
    assert bare_code(SOURCE) == bare_code(PLAIN)
    assert bare_code(SOURCE) != bare_code(PLAIN.replace("2 *", "3 *"))
    assert bare_code(SOURCE) != bare_code(PLAIN.replace("ge=1", "ge=2"))
    assert "2 * x" in bare_code(SOURCE)


def test_what_is_hashed_is_the_code_and_not_its_words(pretraining, tmp_path, monkeypatch):
    """With a copy of the package: a comment in each file changes nothing, another data order does."""
    shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    before = mark(pretraining)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "package")
    for file in (tmp_path / "package").rglob("*.py"):
        file.write_text(file.read_text() + "\n# a remark\n")
    assert mark(pretraining) == before
    for name in (
        "training/watch/curves.py",
        "report/page.py",
        "training/watch/monitor.py",
        "corpus/validation/expectations.py",
    ):
        (tmp_path / "package" / name).write_text("CHANGED = True\n")
    assert mark(pretraining) == before
    order = tmp_path / "package/batches/source.py"
    order.write_text(order.read_text().replace("epoch=epoch,", "epoch=epoch + 1,", 1))
    assert differences(before, mark(pretraining)) == "other code"


def module_file(name: str) -> str | None:
    path = PACKAGE.parent.joinpath(*name.split("."))
    found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
    return found.relative_to(PACKAGE).as_posix() if found and found.is_relative_to(PACKAGE) else None


def imported_by_training() -> set[str]:
    """Files of the package that the training loop imports, directly or indirectly."""
    found, waiting = set(), ["training/loop.py"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [f for name in imported(PACKAGE / file) if (f := module_file(name)) is not None]
    return {file for file in found if not file.endswith("__init__.py")}


def listed(names) -> set[str]:
    paths = [PACKAGE / name for name in names]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    return {f.relative_to(PACKAGE).as_posix() for f in files if f.name != "__init__.py"}


def test_every_module_that_training_imports_is_in_one_of_the_lists():
    used, decides = imported_by_training(), listed(CODE) | listed(STREAM_CODE)
    assert not used - decides - DECIDES_NOTHING, (
        "add them to CODE of training/checkpoints/fingerprint.py or to DECIDES_NOTHING"
    )
    assert not decides & DECIDES_NOTHING
    assert not (decides | DECIDES_NOTHING) - used, "in a list, and not imported by training"
    assert {"batches/source.py", "batches/loader.py", "batches/step_plan.py"} <= decides


@pytest.mark.parametrize("name", [*CODE, *STREAM_CODE])
def test_what_is_listed_exists(name):
    assert (PACKAGE / name).exists()


def test_bare_code_is_code():
    for name in listed(CODE):
        ast.parse(bare_code((PACKAGE / name).read_text()))
    assert hash_code([PACKAGE / "diffusion"]) != hash_code([PACKAGE / "diffusion/losses.py"])
