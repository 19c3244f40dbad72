"""The converted checkpoint against its source: tensors, parameter counts, mask token: reports/analyze.json.

--model FOLDER --exported FOLDER compares a checkpoint with its export instead. Any difference is an error.
"""

from pathlib import Path

from qwen3llada.artifacts import write_json
from qwen3llada.modeling.analyze_request import AnalyzeRequest
from qwen3llada.params import Params, run_as_stage

REPORT = Path("reports/analyze.json")


def main(params: Params, request: AnalyzeRequest | None = None) -> None:
    if request and request.model and request.exported:
        from qwen3llada.modeling.exported import check_exported

        compared = check_exported(request.model, request.exported)
        print(f"{request.exported}: {len(compared)} tensors are those of {request.model}, but for the mask's row")
        return
    from qwen3llada.corpus.fetch.download import fetch_model
    from qwen3llada.modeling.analyze import compare_checkpoints
    from qwen3llada.modeling.comparison_table import show

    report = compare_checkpoints(fetch_model(params.convert.src), params.convert.dst)
    show(report)
    # The source as given in the parameters: the download folder of a hub repository differs between machines.
    write_json(REPORT, report.as_dict() | {"source": params.convert.src})
    report.raise_if_wrong()


if __name__ == "__main__":
    run_as_stage(main, shared=("convert",), request=AnalyzeRequest)
