"""One thin module per stage of `dvc.yaml`: it passes parameters to one function of the package."""

import os

# Switch off telemetry of all dependencies before they are imported. Values set by the user win.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",  # worker processes fork, and tokenizers would warn
}.items():
    os.environ.setdefault(_name, _value)

# Waiting OpenMP threads soon sleep instead of spinning. On cores shared with others, spinning has cost a hundred times
# the work itself. But threads that sleep at once (PASSIVE alone) make the default model's short operations half as slow
# again. GNU's OpenMP, which torch uses on Linux, reads the spin count; both variables are read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
