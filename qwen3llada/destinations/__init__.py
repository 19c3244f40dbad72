"""Checks of every path that a knob gives a stage to write, made before anything is written.

Content at a path is replaced only if it is empty or was written by this project. Never replaced: an input, the
project's folder, a mount point, a link, and any folder that contains one of these. The fixed outputs under data/ and
reports/ belong to DVC and are not checked, unless a source may lie in them (`OUTPUT`, for `download`).
"""

from qwen3llada.destinations.check import check_destinations
from qwen3llada.destinations.kinds import ANSWERS, CARD, EXPORT, LOCK_FILE, MODEL, OUTPUT, PAGE, REPORTS, WORK, Kind

__all__ = [
    "ANSWERS",
    "CARD",
    "EXPORT",
    "LOCK_FILE",
    "MODEL",
    "OUTPUT",
    "PAGE",
    "REPORTS",
    "WORK",
    "Kind",
    "check_destinations",
]
