"""This project's command to put a parameter set into params.yaml, as the real package's: checked before it writes.

`--check` finds every destination good.
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML

if sys.argv[1] == "--check":
    sys.exit()
yaml = YAML()
tree = yaml.load(Path("params.yaml"))
for section, values in yaml.load(Path(sys.argv[1])).items():
    for key, value in values.items():
        if section not in tree or key not in tree[section]:
            sys.exit(f"error: {sys.argv[1]}: {section}.{key}: unknown key")
        tree[section][key] = value
yaml.dump(tree, Path("params.yaml"))
