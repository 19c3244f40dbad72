"""The converted checkpoint against its source: tensors, parameter counts, mask token: reports/analyze.json.

Any difference is an error.
"""

from pathlib import Path

from qwen3llada.artifacts import write_json
from qwen3llada.params import Params, run_as_stage

REPORT = Path("reports/analyze.json")


def main(params: Params) -> None:
    from qwen3llada.corpus.fetch.download import fetch_model
    from qwen3llada.modeling.analyze import compare_checkpoints
    from qwen3llada.modeling.comparison_table import show

    report = compare_checkpoints(fetch_model(params.convert.src), params.convert.dst)
    show(report)
    # The source as given in the parameters: the download folder of a hub repository differs between machines.
    write_json(REPORT, report.as_dict() | {"source": params.convert.src})
    report.raise_if_wrong()


if __name__ == "__main__":
    run_as_stage(main, shared=("convert",))
