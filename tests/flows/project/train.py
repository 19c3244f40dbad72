"""Trains as the real trainer does, in little: dependent steps, checkpoints, SIGTERM means save and 75.

The "model" is a chain of hashes, so that a step done twice or left out changes it. Each life of the process is a line
of work/lives. `train.deaf: true` ignores SIGTERM for ever, `train.slow_start` seconds pass before the handler is
there, and `train.hold` makes step 5 wait for the file work/go.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

params = YAML(typ="safe").load(Path("params.yaml"))["train"]
work = Path("work")
work.mkdir(exist_ok=True)
with open(work / "lives", "a") as lives:
    lives.write(f"{os.getpid()}\n")
if params["rate"] <= 0:
    print(f"error: params.yaml: train.rate: given {params['rate']}, must be above 0", file=sys.stderr)
    sys.exit(2)
time.sleep(params.get("slow_start", 0))
stopping = []
if not params.get("deaf"):
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

text = Path("text.txt").read_text()
made_of = hashlib.sha256(json.dumps([text, params["rate"]]).encode()).hexdigest()
checkpoint = work / "checkpoint.json"
state = {"made_of": made_of, "step": 0, "model": text}
if checkpoint.exists() and (saved := json.loads(checkpoint.read_text()))["made_of"] == made_of:
    state = saved
    print(f"resuming after step {state['step']}", flush=True)


def save():
    temporary = work / f"checkpoint.{os.getpid()}"
    temporary.write_text(json.dumps(state))
    os.replace(temporary, checkpoint)


while state["step"] < params["steps"]:
    time.sleep(params["step_seconds"])
    state["step"] += 1
    state["model"] = hashlib.sha256(f"{state['model']} {state['step']} {params['rate']}".encode()).hexdigest()
    # As tqdm draws it: what is printed after a kill continues the line.
    print(f"\r{100 * state['step'] // params['steps']}%| step {state['step']} [00:00<?, ?step/s]", end="", flush=True)
    if state["step"] % 5 == 0:
        save()
    while params.get("hold") and state["step"] == 5 and not (work / "go").exists():
        time.sleep(0.02)
    if stopping:
        save()
        print(f"\nstopped by SIGTERM: checkpoint saved at step {state['step']} in {checkpoint}; …", flush=True)
        sys.exit(75)
print()
Path("model.txt").write_text(state["model"] + "\n")
checkpoint.unlink(missing_ok=True)
