"""Answer prompts: those held out from training (reports/samples.jsonl, reports/sample.json), or yours.

--prompt TEXT (repeatable) or --prompts FILE asks, --out FILE keeps the answers, --trace FILE writes a page that plays
how they were denoised. --interactive is a chat.
"""

from pathlib import Path

from qwen3llada.params import Params, run_as_stage
from qwen3llada.sampling.lean_import import end_at_once, import_model_code
from qwen3llada.sampling.params import SampleRequest

REPORTS = Path("reports")


def main(params: Params, request: SampleRequest) -> None:
    model = request.model or params.sft.dst
    if request.interactive:
        import_model_code()
        from qwen3llada.sampling.dialogue.chat import chat

        chat(model, params.sample, seed=params.seed, system=request.system, bf16=params.sample.bf16)
    elif request.prompt or request.prompts:
        from qwen3llada.sampling.dialogue.ask import answer_request

        answer_request(request, model, params.sample, seed=params.seed)
        end_at_once()
    else:
        import_model_code()
        from qwen3llada.sampling.dialogue.exact_match import answer_heldout

        report = answer_heldout(model, params.sft.data / "heldout", REPORTS, params.sample, seed=params.seed)
        print(f"exact match {report['exact_match']:.3f} over {report['samples']} held-out prompts")


if __name__ == "__main__":
    run_as_stage(main, own="sample", shared=("seed",), request=SampleRequest)
