"""Which run a summary is of, for whoever reads it later."""

import hashlib
import json

from qwen3llada.section import Section

# Knobs that change nothing in what a run reports: where files go, and how often something is saved.
FREE = {
    *("output_dir", "reports", "resume_from", "save_steps", "save_total_limit", "num_workers", "peak_tflops"),
    "telemetry",
}


def settings_hash(params: Section, *, seed: int) -> str:
    """16 hexadecimal digits that tell runs of different parameters apart: SHA-256 of the section without `FREE`."""
    knobs = {key: value for key, value in params.model_dump(mode="json").items() if key not in FREE}
    text = json.dumps({**knobs, "seed": seed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
