"""Hash of a run's settings, to tell which run a summary belongs to."""

import hashlib
import json

from qwen3llada.section import Section

# Knobs that do not affect a run's results: paths, and how often to save.
FREE = {
    *("output_dir", "reports", "resume_from", "save_steps", "save_total_limit", "num_workers", "peak_tflops"),
    "telemetry",
}


def settings_hash(params: Section, *, seed: int) -> str:
    """16 hexadecimal digits of the SHA-256 of the section without `FREE`. They differ for different parameters."""
    knobs = {key: value for key, value in params.model_dump(mode="json").items() if key not in FREE}
    text = json.dumps({**knobs, "seed": seed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
