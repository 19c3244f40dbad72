"""SHA-256 of files and texts."""

import hashlib
import os
from pathlib import Path


def file_digest(path: str | os.PathLike) -> str:
    """16 hexadecimal digits of a file's SHA-256, enough to tell small files apart."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def text_digest(text: str) -> str:
    """64 hexadecimal digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
