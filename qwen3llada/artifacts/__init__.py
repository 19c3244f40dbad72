"""Writing outputs whole or not at all, and reading them back.

Every output goes to a temporary sibling first, is flushed to the disk, and takes its name by a rename. So a reader
never meets half an output, a failure leaves what was there before, and a file that DVC has hard-linked into its cache
is replaced by a new one instead of being rewritten in place. Outputs get the permissions that the umask gives:
safetensors, for one, makes its files readable by their owner alone.
"""

from qwen3llada.artifacts.digests import file_digest, text_digest
from qwen3llada.artifacts.full_disk import FullDiskError, full_disk_named
from qwen3llada.artifacts.json_files import read_json, read_jsonl, write_json, write_jsonl
from qwen3llada.artifacts.marker import MARKER, mark, read_marker
from qwen3llada.artifacts.whole import new_file, new_folder, new_together, publish

__all__ = [
    "MARKER",
    "FullDiskError",
    "file_digest",
    "full_disk_named",
    "mark",
    "new_file",
    "new_folder",
    "new_together",
    "publish",
    "read_json",
    "read_jsonl",
    "read_marker",
    "text_digest",
    "write_json",
    "write_jsonl",
]
