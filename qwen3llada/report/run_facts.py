"""Facts about a run: revision, data, machine; and the history of earlier reports, for comparison."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_jsonl, text_digest, write_jsonl
from qwen3llada.report.data import content_blamed, read_object

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "dvc")
HISTORY_KEPT = 100


def revision() -> str:
    """The commit of the working tree, with `-dirty` if tracked files differ from it; "" outside a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return ""


def hardware() -> dict[str, str]:
    """Processor, memory, accelerators, operating system, and versions of Python and the main packages."""
    import psutil
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "Processor": f"{_processor()}, {os.cpu_count()} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Accelerator": ", ".join(f"{devices.count(name)} × {name}" for name in dict.fromkeys(devices)) or "none",
        "System": f"{platform.system()} {platform.machine()}, Python {sys.version.split()[0]}",
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def data_sources(path: Path) -> list[dict[str, Any]]:
    """Per source of `download`: name, source, revision, number and bytes of files, digest of their content."""
    rows = []
    with content_blamed(path):
        for name, entry in read_object(path).items():
            digests = sorted((file, facts["sha256"]) for file, facts in entry["files"].items())
            rows.append(
                {
                    "name": name,
                    "source": entry["source"],
                    "revision": entry.get("revision"),
                    "files": len(digests),
                    "bytes": sum(facts["bytes"] for facts in entry["files"].values()),
                    "digest": text_digest(json.dumps(digests))[:16],
                }
            )
    return rows


def compare_with_previous(path: Path, current: Mapping[str, Any]) -> dict[str, Any] | None:
    """Add this run to the history in `path` and compare it with the latest earlier run that differs.

    Args:
        current: {"revision": …, "parameters": {dotted key: value}, "metrics": {name: number}}.

    Returns: None for the first run; else {"revision": …, "parameters": rows of (key, before, now) that differ,
        "metrics": rows of (name, before, now, change) that changed, "unchanged": number of the others}.
    """
    history = list(read_jsonl(path)) if path.exists() else []
    with content_blamed(path):
        known = [_content(entry) for entry in history]
    if not known or known[-1] != _content(current):
        history.append(dict(current))
        write_jsonl(path, history[-HISTORY_KEPT:])
    earlier = next((entry for entry in reversed(history) if _content(entry) != _content(current)), None)
    if earlier is None:
        return None
    old, new = earlier["parameters"], current["parameters"]
    before, now = earlier["metrics"], current["metrics"]
    changed = [k for k in now if k in before and now[k] != before[k]]
    return {
        "revision": earlier["revision"],
        "parameters": [(k, old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)],
        "metrics": [(k, before[k], now[k], now[k] - before[k]) for k in changed],
        "unchanged": len(now.keys() & before.keys()) - len(changed),
    }


def _content(entry: Mapping[str, Any]) -> Any:
    return entry["parameters"], entry["metrics"]
