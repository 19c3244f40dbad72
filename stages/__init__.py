"""One thin module per stage of `dvc.yaml`: parameters in, one function of the package, artifacts out."""

import os

# Telemetry of every dependency is off before any of them is imported. A value set by the user wins.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",  # our own worker processes fork; tokenizers warns otherwise
}.items():
    os.environ.setdefault(_name, _value)

# Threads that wait for each other soon sleep instead of spinning: on cores that others use too, spinning has cost a
# hundred times the work itself. The default model's operations are short, though, so those that sleep at once (PASSIVE
# alone) take half as long again; GNU's OpenMP, which torch brings on Linux, takes the count. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
