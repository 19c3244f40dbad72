"""Writing of outputs, completely or not at all, and reading them back.

Every output is written to a temporary sibling, flushed to disk and renamed. So a reader never sees a partial output, a
failure leaves the old one, and a file that DVC has hard-linked into its cache is replaced instead of overwritten.
Outputs get the permissions of the umask; safetensors, for example, would make its files readable only by their owner.
"""

from qwen3llada.artifacts.digests import file_digest, text_digest
from qwen3llada.artifacts.full_disk import FullDiskError, full_disk_named
from qwen3llada.artifacts.json_files import read_json, read_jsonl, write_json, write_jsonl
from qwen3llada.artifacts.marker import MARKER, mark, read_marker
from qwen3llada.artifacts.whole import finished_name, new_file, new_folder, new_together, publish, remove_unfinished

__all__ = [
    "MARKER",
    "FullDiskError",
    "file_digest",
    "finished_name",
    "full_disk_named",
    "mark",
    "new_file",
    "new_folder",
    "new_together",
    "publish",
    "read_json",
    "read_jsonl",
    "read_marker",
    "remove_unfinished",
    "text_digest",
    "write_json",
    "write_jsonl",
]
