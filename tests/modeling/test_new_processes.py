"""What shows only in a process that has not imported the package: the Auto classes, and a checkpoint's own code.

Each begins as a fork of one process that has imported Transformers, which takes seconds, and nothing of ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.sampler import generate as sampled

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

FORKS = """
import gc, json, os, sys, traceback
gc.disable()  # imports leave no garbage
import transformers.models.qwen3.modeling_qwen3
for line in sys.stdin:
    code, arguments, output = json.loads(line)
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.argv[1:], status = arguments, 1
        try:
            exec(code, {})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
os._exit(0)  # without taking apart what was imported
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs code with arguments in such a process, and returns what it prints."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=folder, env=environment, **pipes) as forks:

        def run(code, *arguments):
            output = folder / "output"
            output.unlink(missing_ok=True)
            print(json.dumps([code, [*map(str, arguments)], str(output)]), file=forks.stdin, flush=True)
            status, said = forks.stdout.readline(), output.read_text()
            assert status == "0\n", said[-2000:]
            return said

        yield run


REGISTERS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import qwen3llada
from transformers import AutoConfig, AutoModelForMaskedLM

def registered():
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    try:
        config = AutoConfig.for_model("qwen3llada", **sizes, **heads, mask_token_id=7)
    except ValueError:  # an unknown type
        return False
    return type(AutoModelForMaskedLM.from_config(config)).__module__ == "qwen3llada.modeling.modeling_qwen3llada"

for first in sys.argv[2:]:
    if not (child := os.fork()):
        exec(first)
        os._exit(0 if registered() else 1)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"not registered after: {first}")
assert not registered(), "the children show nothing"
"""


def test_importing_any_public_name_registers_the_auto_classes(run):
    """Each public name registers the classes when imported alone in a new process; so does the start of training."""
    import qwen3llada

    assert {"Qwen3LLadaConfig", "Qwen3LLadaForMaskedLM", "Qwen3LLadaModel", "generate", "load"} == {*qwen3llada.__all__}
    public = [f"from qwen3llada import {name}" for name in qwen3llada.__all__]
    run(REGISTERS, ROOT, *public, "import qwen3llada.training.start.start")


REMOTE = """
import json, sys, torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
try:
    import qwen3llada
    sys.exit("the package can be imported here, so that this shows nothing")
except ImportError:
    pass
folder, again, logits = sys.argv[1:]
found = []
for given in ({"trust_remote_code": False}, {}):  # told, Transformers asks nothing; not told, it takes silence as no
    tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    assert not [name for name in sys.modules if "qwen3llada" in name], "code of the checkpoint was run"
    found.append([tokenizer.mask_token_id, tokenizer("hello <|mask|> world")["input_ids"]])
    print("asked" if given else "", flush=True)
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
tokens = torch.tensor([[5, 6, 7]])
with torch.no_grad():
    assert torch.equal(model.eval()(tokens).logits, torch.load(logits)), "other logits than with the package"
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "Qwen3LLadaModel"
first = model.generate(tokens, max_new_tokens=12, steps=6)
named = model.generate(input_ids=tokens, max_new_tokens=12, steps=6)
assert torch.equal(first, named)
model.save_pretrained(again)
loaded = AutoModelForMaskedLM.from_pretrained(again, trust_remote_code=True)
assert torch.equal(loaded.generate(tokens, max_new_tokens=12, steps=6), first)
print("\\n" + json.dumps([first[0].tolist(), *found]))
"""


def test_a_checkpoint_works_where_the_package_is_not(run, source, tmp_path):
    """Tokenizer, model, and generation by Transformers' hook: from a conversion, and from what is saved there again."""
    from qwen3llada.modeling.convert import convert_checkpoint
    from qwen3llada.modeling.loading import load_pretrained
    from qwen3llada.modeling.mask_token import load_any_tokenizer

    convert_checkpoint(source, tmp_path / "out")
    model = load_pretrained(tmp_path / "out").float()
    expected = sampled(model, [[5, 6, 7]], DecodeParams(gen_length=12, steps=6, block_length=32)).canvas[0].tolist()
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    with torch.no_grad():
        torch.save(model.eval()(torch.tensor([[5, 6, 7]])).logits, tmp_path / "logits")
    said = run(REMOTE, *(tmp_path / name for name in ("out", "again", "logits")))
    tokens, *found = json.loads(said.strip().splitlines()[-1])
    ids = load_any_tokenizer(tmp_path / "out")("hello <|mask|> world")["input_ids"]
    assert (tokens, found) == (expected, [[296, ids]] * 2)
    assert "run the custom code" not in said.partition("asked")[0]
    for name in ("configuration_qwen3llada.py", "modeling_qwen3llada.py", "custom_generate/generate.py"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "out" / name).read_text()
