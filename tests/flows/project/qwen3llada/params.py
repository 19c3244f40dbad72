"""This project's command to put a parameter set into params.yaml, as the real package's: checked before it writes.

`--check` checks what is in params.yaml.
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML

yaml = YAML()
tree = yaml.load(Path("params.yaml"))
if sys.argv[1] == "--check":
    sys.exit("error: params.yaml: train.rate: must not be negative" if tree["train"]["rate"] < 0 else 0)
for section, values in yaml.load(Path(sys.argv[1])).items():
    for key, value in values.items():
        if section not in tree or key not in tree[section]:
            sys.exit(f"error: {sys.argv[1]}: {section}.{key}: unknown key")
        tree[section][key] = value
yaml.dump(tree, Path("params.yaml"))
