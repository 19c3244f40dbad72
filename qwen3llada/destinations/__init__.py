"""Where a stage may write: one check of every path that a knob names, made before anything is written.

What is at a path is replaced only if it is empty or was written by this project. An input, the project's folder, a
mount point, a link, and any folder that holds one of these are never replaced. The fixed outputs under data/ and
reports/ belong to DVC and are not checked, except where a source may lie in them (`OUTPUT`, for `download`).
"""

from qwen3llada.destinations.check import check_destinations
from qwen3llada.destinations.kinds import ANSWERS, EXPORT, LOCK_FILE, MODEL, OUTPUT, PAGE, REPORTS, WORK, Kind

__all__ = ["ANSWERS", "EXPORT", "LOCK_FILE", "MODEL", "OUTPUT", "PAGE", "REPORTS", "WORK", "Kind", "check_destinations"]
