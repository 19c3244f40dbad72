from pathlib import Path

from ruamel.yaml import YAML

Path("text.txt").write_text(YAML(typ="safe").load(Path("params.yaml"))["prepare"]["text"] + "\n")
