from pathlib import Path

from ruamel.yaml import YAML

params = YAML(typ="safe").load(Path("params.yaml"))["prepare"]
text = Path(params["source"]).read_text() if params["source"] else params["text"] + "\n"
Path("text.txt").write_text(text)
