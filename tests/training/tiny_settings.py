"""The knobs that the runs of these tests share."""

from pathlib import Path


def common(tiny: Path, out: Path, kind: str) -> dict:
    return {
        "model": tiny / "model",
        "data": tiny / kind,
        "dst": out / "model",
        "output_dir": out / "work",
        "reports": out / "reports" / kind,
        "max_length": 16,
        "max_steps": 6,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 0,
        "logging_steps": 2,
        "eval_every_steps": 4,
        "optim": {"lr": 0.01, "warmup_ratio": 0.1},
        "noise": {"random_length_prob": 0.2},
    }
