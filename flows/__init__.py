"""Prefect flows over the stages of `dvc.yaml`: schedule, retry, stop and report. DVC decides what is stale."""

import os

# Switch off telemetry of all dependencies before they are imported. Values set by the user win.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # busy machines need more than the default of 20
}.items():
    os.environ.setdefault(_name, _value)
