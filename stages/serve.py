"""A server for one machine: OpenAI's HTTP interface, and a page to watch the model think. Ctrl-C stops it.

What a request leaves open (steps, block length, remasking, …) is that of the section `sample`.
"""

from qwen3llada.params import Params, run_as_stage


def main(params: Params) -> None:
    from qwen3llada.serving.server import serve

    serve(params.serve, params.sample)


if __name__ == "__main__":
    run_as_stage(main, own="serve", shared=("sample",))
