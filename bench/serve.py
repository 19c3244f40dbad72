"""Requests per second, latency and memory of the server, at once and one after the other.

python -m bench.serve                               # starts out/qwen3llada-sft, measures it and stops it
python -m bench.serve --requests 10000 --alone 0 --tokens 2 4
python -m bench.serve --url http://127.0.0.1:8000 --pid PID       # a server that runs already

Every client sends its next request when the last is answered. Prompts, lengths, seeds, temperatures, scores and ways of
unmasking differ from request to request. Every 20th client leaves before its answer and every 19th body is wrong
(--vanish, --bad). Fails if an answer is lost, a wrong body is not refused, or memory grows.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.clients import at_once

QUESTIONS = (
    "What is Bruno's animal?",
    "In which town can I visit Petra?",
    "Tell me where Mira lives and which animal she keeps, please.",
)
TIMEOUT = 300.0  # seconds that a client waits for its answer
GONE = -1  # status of a request whose client left before the answer
PARTS = 10  # memory is looked at after each of so many parts of a run
GROWTH = 1.1  # memory after the last part, over that after the third: until then buffers find their sizes


def body(number: int, tokens: list[int], *, bad: bool) -> dict[str, Any]:
    """The request with this number, the same in every run."""
    draw = random.Random(number)
    knobs = {
        "temperature": draw.choice([0.0, 0.7, 1.0]),
        "remasking": draw.choice(["low_confidence", "entropy", "margin", "random"]),
        "unmask": draw.choice(["fixed", "threshold"]),
        "block_length": draw.choice([4, 8, 16]),
        "max_tokens": draw.choice(tokens),
    }
    if bad:
        knobs |= draw.choice([{"steps": 0}, {"temperature": "hot"}, {"stpes": 3}, {"messages": []}, {"n": 1000}])
    return {"messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}], "seed": number} | knobs


class Load:
    """So many requests by so many clients."""

    def __init__(self, url: str, args: argparse.Namespace) -> None:
        self.url, self.args = url, args
        self.times: list[float] = []  # of the answers
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []  # what should not have been
        self.memory: list[int] = []

    async def run(self, clients: int, requests: int) -> dict[str, Any]:
        """Send them. Returns the figures."""
        numbers = iter(range(requests))

        async def work(client: Any) -> None:
            for number in numbers:
                await self._one(client, number)
                if self.args.pid and (number + 1) % max(1, requests // PARTS) == 0:
                    self.memory.append(memory(self.args.pid))

        used, begin = processor_seconds(self.args.pid), time.perf_counter()
        own = await at_once(self.url, clients, work, timeout=TIMEOUT)
        seconds, times = time.perf_counter() - begin, sorted(self.times)
        return {
            "clients": clients,
            "requests": requests,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "answers_per_second": round(len(times) / seconds, 1),
            "processor_seconds": round(processor_seconds(self.args.pid) - used, 1),
            "clients_processor_seconds": round(own, 1),
            "p50_seconds": round(times[len(times) // 2], 3) if times else None,
            "p99_seconds": round(times[int(len(times) * 0.99)], 3) if times else None,
            "memory_MiB": self.memory,
        }

    async def _one(self, client: Any, number: int) -> None:
        import httpx

        leave, bad = (bool(n) and number % n == n - 1 for n in (self.args.vanish, self.args.bad))
        bad = bad and not leave
        begin, timeout = time.perf_counter(), 0.02 if leave else TIMEOUT
        sent = body(number, self.args.tokens, bad=bad)
        try:
            reply = await client.post("/v1/chat/completions", json=sent, timeout=timeout)
            status = reply.status_code
        except (httpx.TimeoutException, httpx.TransportError) as error:
            status = GONE
            if not leave:
                self.wrong.append(f"request {number}: lost: {error!r}")
        self.statuses[status] += 1
        if status == 200:
            self.times.append(time.perf_counter() - begin)
        if status != (400 if bad else 200) and not leave:
            self.wrong.append(f"request {number}: status {status}: {sent}")


def memory(pid: int) -> int:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def processor_seconds(pid: int) -> float:
    """What a process has used of all cores; 0 without one. Other work on the machine hardly changes it."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(model: str, batch: int) -> Iterator[tuple[str, int]]:
    """Address and process of a server for a model, which ends with the context."""
    command = [sys.executable, "-m", "stages.serve", "--model", model, "--port", "0", "--max_batch", str(batch)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        if found is None:
            raise SystemExit(f"no server: {' '.join(command)}")
        yield found[0], server.pid
    finally:
        server.terminate()
        server.wait()


def measure(url: str, args: argparse.Namespace) -> bool:
    """Measure one after the other and at once, print both; whether all is as it should be."""
    asyncio.run(Load(url, args).run(4, 40))  # warm
    fine = True
    for name, clients, requests in (("one after the other", 1, args.alone), ("at once", args.clients, args.requests)):
        if not requests:
            continue
        load = Load(url, args)
        print(json.dumps({"run": name} | asyncio.run(load.run(clients, requests))), flush=True)
        print(*load.wrong[:5], sep="\n", end="\n" if load.wrong else "", file=sys.stderr)
        grown = len(load.memory) == PARTS and load.memory[-1] > GROWTH * load.memory[2]
        fine = fine and not load.wrong and not grown
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/qwen3llada-sft", help="that a server is started for")
    parser.add_argument("--max_batch", type=int, default=32, help="of the server that is started")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--pid", type=int, default=0, help="of that server, to look at its memory")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--alone", type=int, default=100, help="requests that are sent one after the other")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4, 8, 16, 32], help="lengths of the answers")
    parser.add_argument(
        "--vanish", type=int, default=20, help="of so many clients one leaves before its answer; 0: none"
    )
    parser.add_argument("--bad", type=int, default=19, help="of so many bodies one is wrong; 0: none")
    args = parser.parse_args()
    if args.url:
        return not measure(args.url, args)
    with started(args.model, args.max_batch) as (url, args.pid):
        return not measure(url, args)


if __name__ == "__main__":
    raise SystemExit(main())
