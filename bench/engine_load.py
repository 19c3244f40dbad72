"""This project's server and LMDeploy's under the same load: prompts and answers of mixed lengths, greedy, no early end.

Each round is run twice: in the first, kernels are compiled and graphs captured; the second is measured.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.clients import at_once
from bench.engine_speed import OURS, THEIRS
from bench.lmdeploy_engine import CACHE, ENVIRONMENT, SESSION, THRESHOLD

BLOCK = 32
BATCH = 128  # answers decoded together, at most
CLIENTS = (200, 64, 1)
EACH = 2  # requests a client sends, one after the other
ALONE = 8  # requests of the only client
PROMPTS = (16, 48, 100, 256, 500)  # lengths
ANSWERS = (32, 64, 128, 256)
NAME = "served"


def body(number: int, engine: str, steps: int) -> dict[str, Any]:
    """The request with this number, the same in every run, with `steps` denoising steps a block."""
    draw = random.Random(number)
    prompt, answer = draw.choice(PROMPTS), draw.choice(ANSWERS)
    words = " ".join(str(draw.randrange(100_000)) for _ in range(prompt))
    asked = {"model": NAME, "prompt": words, "max_tokens": answer, "temperature": 0}
    if engine == THEIRS:
        return asked | {"top_k": 1, "ignore_eos": True}
    blocks = -(-(prompt % BLOCK + answer) // BLOCK)
    return asked | {"steps": blocks * steps, "block_length": BLOCK}


def command(engine: str, model: Path, exported: Path, steps: int, port: int) -> list[str]:
    """How a server is started."""
    if engine == OURS:
        own = {"model": model, "port": port, "served_name": NAME, "max_batch": BATCH}
        return [sys.executable, "-m", "stages.serve", "--bf16", *(f"--{name}={value}" for name, value in own.items())]
    given = {
        "backend": "pytorch",
        "dtype": "bfloat16",
        "model-name": NAME,
        "server-name": "127.0.0.1",
        "server-port": port,
        "dllm-block-length": BLOCK,
        "dllm-unmasking-strategy": "low_confidence_static",
        "dllm-denoising-steps": steps,
        "dllm-confidence-threshold": THRESHOLD,
        "cache-max-entry-count": CACHE,
        "max-batch-size": BATCH,
        "session-len": SESSION,
        "log-level": "ERROR",
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    start = [sys.executable, "-m", "lmdeploy", "serve", "api_server", str(exported)]
    return [*start, *flags, "--trust-remote-code", "--disable-metrics"]


@contextlib.contextmanager
def started(line: Sequence[str], port: int, seconds: float, log: Path) -> Iterator[str]:
    """Address of a server that ends with the context. Raises RuntimeError if it does not answer in `seconds`."""
    import httpx

    url, begin = f"http://127.0.0.1:{port}", time.perf_counter()
    with log.open("w") as file:
        server = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT | dict(os.environ))
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models", timeout=2, trust_env=False).status_code == 200:
                    break
            if server.poll() is not None or time.perf_counter() - begin > seconds:
                raise RuntimeError(f"no server: {' '.join(line)}\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.25)
        yield url
    finally:
        stop(server)


def stop(server: "subprocess.Popen[Any]") -> None:
    """End a process. It is asked first; closing LMDeploy's engine can hang."""
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def run_round(url: str, engine: str, clients: int, requests: int, steps: int) -> dict[str, Any]:
    """`requests` by `clients` at once: rates, and the time to an answer. What was not answered is named."""
    import httpx

    times, tokens, wrong, numbers = list[float](), 0, list[str](), iter(range(requests))

    async def work(client: Any) -> None:
        nonlocal tokens
        for number in numbers:
            sent = time.perf_counter()
            try:
                reply = await client.post("/v1/completions", json=body(number, engine, steps))
                reply.raise_for_status()
                tokens += reply.json()["usage"]["completion_tokens"]
                times.append(time.perf_counter() - sent)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                text = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
                wrong.append(f"request {number}: {error!r} {text:.200}")

    begin = time.perf_counter()
    own = await at_once(url, clients, work, timeout=120)
    taken = time.perf_counter() - begin
    times.sort()
    found: dict[str, Any] = {"clients": clients, "requests": requests, "answered": len(times)}
    found |= {"seconds": taken, "clients_processor_seconds": own}
    if times:
        at = {name: times[int((len(times) - 1) * share)] for name, share in (("p50", 0.5), ("p99", 0.99))}
        found |= {"requests_per_second": len(times) / taken, "tokens_per_second": tokens / taken} | at
    return found | ({"wrong": wrong[:3]} if wrong else {})


def measure(
    engine: str, model: Path, exported: Path, steps: int, seconds: float, log: Path
) -> Iterator[dict[str, Any]]:
    """All rounds on one server, as far as they begin within `seconds`."""
    begin, port = time.perf_counter(), free_port()
    with started(command(engine, model, exported, steps, port), port, seconds, log) as url:
        yield {"engine": engine, "note": f"answers after {time.perf_counter() - begin:.0f} s"}
        for clients in CLIENTS:
            for measured in (False, True):
                if time.perf_counter() - begin > seconds:
                    yield {"engine": engine, "note": f"no time for {clients} clients and the rest"}
                    return
                requests = clients * EACH if clients > 1 else ALONE if measured else 1
                found = asyncio.run(run_round(url, engine, clients, requests, steps))
                yield {"engine": engine, "steps": steps, "measured": measured} | found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown: what was measured of each server, most clients first."""
    lines = ["| clients | server | requests/s | tokens/s | p50 | p99 |", "|---|---|---|---|---|---|"]
    for clients in CLIENTS:
        for engine in (THEIRS, OURS):
            of = next((r for r in found if r.get("measured") and (r["clients"], r["engine"]) == (clients, engine)), {})
            values = [of.get(name) for name in ("requests_per_second", "tokens_per_second", "p50", "p99")]
            forms = ("{:.1f}", "{:,.0f}", "{:.2f} s", "{:.2f} s")
            shown = ["-" if v is None else form.format(v) for form, v in zip(forms, values, strict=True)]
            lines.append(f"| {clients} | {engine} | {' | '.join(shown)} |")
    return "\n".join(lines)
