"""Requests per second and latency of a running server, at once and one after the other; its memory meanwhile.

python -m bench.serve --url http://127.0.0.1:8000 --clients 200 --requests 2000 [--pid PID]

Every client sends its next request when the last is answered. The requests' answers have 4 to 32 tokens and prompts of
other lengths. With --vanish N every Nth client leaves before its answer. Fails if an answer is lost.
"""

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

QUESTIONS = (
    "What is Bruno's animal?",
    "In which town can I visit Petra?",
    "Tell me where Mira lives and which animal she keeps, please.",
)


def body(number: int) -> dict[str, Any]:
    """The request with this number, the same in every run."""
    draw = random.Random(number)
    question = QUESTIONS[number % len(QUESTIONS)]
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": draw.choice([4, 8, 16, 32]),
        "seed": number,
        "temperature": draw.choice([0.0, 0.7]),
    }


async def one(client: Any, number: int, *, leave: bool) -> tuple[int, float]:
    """Status and seconds of a request; -1 where the client left before the answer."""
    import httpx

    begin = time.perf_counter()
    try:
        timeout = 0.01 if leave else 300.0
        reply = await client.post("/v1/chat/completions", json=body(number), timeout=timeout)
    except httpx.TimeoutException:
        return -1, time.perf_counter() - begin
    return reply.status_code, time.perf_counter() - begin


async def load(url: str, clients: int, requests: int, vanish: int) -> dict[str, Any]:
    """Send all requests by so many clients."""
    import httpx

    numbers = iter(range(requests))
    results: list[tuple[int, float]] = []

    async def work(client: Any) -> None:
        for number in numbers:
            results.append(await one(client, number, leave=bool(vanish) and number % vanish == vanish - 1))

    begin = time.perf_counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    seconds = time.perf_counter() - begin
    times = sorted(taken for status, taken in results if status == 200)
    statuses = {str(s): sum(status == s for status, _ in results) for s in sorted({status for status, _ in results})}
    return {
        "clients": clients,
        "requests": len(results),
        "statuses": statuses,
        "requests_per_second": round(len(results) / seconds, 1),
        "p50_seconds": round(times[len(times) // 2], 3) if times else None,
        "p99_seconds": round(times[int(len(times) * 0.99)], 3) if times else None,
    }


def memory(pid: int) -> int:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--alone", type=int, default=100, help="requests that are sent one after the other")
    parser.add_argument("--vanish", type=int, default=0)
    parser.add_argument("--pid", type=int, default=0, help="of the server, to look at its memory")
    args = parser.parse_args()
    asyncio.run(load(args.url, 4, 50, 0))  # warm
    runs = [("one after the other", 1, args.alone, 0), ("at once", args.clients, args.requests, args.vanish)]
    lost = 0
    for name, clients, requests, vanish in runs:
        before = memory(args.pid) if args.pid else None
        figures = asyncio.run(load(args.url, clients, requests, vanish))
        after = memory(args.pid) if args.pid else None
        print(
            json.dumps({"run": name} | figures | {"memory_before_MiB": before, "memory_after_MiB": after}), flush=True
        )
        lost += requests - sum(figures["statuses"].get(status, 0) for status in ("200", "-1"))
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
