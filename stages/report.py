"""One page about the run: reports/report.html, and its short form reports/summary.md."""

from pathlib import Path

from qwen3llada.params import Params, run

REPORTS, SOURCE = Path("reports"), Path("data/raw/SOURCE.json")


def main(params: Params) -> None:
    from qwen3llada.evaluation.report import write_report

    page = write_report(
        REPORTS,
        params.report,
        parameters=params.model_dump(mode="json", by_alias=True),
        source=SOURCE,
        model=params.sft.dst,
        heldout=params.sft.data / "heldout",
        sample=params.sample,
        seed=params.seed,
    )
    print(f"{page}: {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main, own="report", shared=("seed", "sft", "sample"))
