"""What determines the weights of post-training is in the fingerprint."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training/checkpoints"))
from test_fingerprint import DECIDES_NOTHING, PACKAGE, imported, listed, module_file

from qwen3llada.post_training import task
from qwen3llada.training.checkpoints.fingerprint import CODE, STREAM_CODE

# Parameters, whose values are compared, and how they are read.
FREE = {"sampling/params.py", "tracked.py", "knob_variables.py"}


def test_every_module_that_post_training_imports_is_in_one_of_the_lists():
    found, waiting = set(), ["post_training/task.py"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [f for name in imported(PACKAGE / file) if (f := module_file(name)) is not None]
    used = {file for file in found if not file.endswith("__init__.py")}
    read = {file for file in used if file.startswith("commandline/")}
    decides = listed(CODE) | listed(STREAM_CODE) | listed(task.CODE)
    assert sorted(used - decides - DECIDES_NOTHING - FREE - read) == []
    assert sorted(listed(task.CODE) - used) == []
