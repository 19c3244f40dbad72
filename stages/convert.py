"""A Qwen3 checkpoint becomes a qwen3llada one: the same weights, a mask token, attention to both sides."""

from qwen3llada.destinations import MODEL, check_destinations
from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    from qwen3llada.corpus.fetch.download import fetch_model
    from qwen3llada.modeling.convert import convert_checkpoint

    section = params.convert
    check_destinations({"dst": (section.dst, MODEL)}, {"src": section.src})  # before a download
    report = convert_checkpoint(fetch_model(section.src), section.dst, section.mask_token)
    print(
        f"{report.source} -> {report.destination}: {report.parameters:,} parameters in {report.tensors} tensors "
        f"({', '.join(report.dtypes)}), mask token {report.mask_token} = {report.mask_token_id}"
        + (f", {report.rows_added} rows added to the embedding" if report.rows_added else "")
    )


if __name__ == "__main__":
    run_as_stage(main, own="convert")
