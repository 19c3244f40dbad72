"""What the benchmarks' clients cost must not be taken for the server's time."""

import argparse
import asyncio
import json
import re
import sys

import pytest

from bench.engine_load import run_round
from bench.engine_speed import OURS
from bench.serve import Load

pytest.importorskip("httpx")

ROUNDS = 3
REPLY = json.dumps({"usage": {"completion_tokens": 1}}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)


class Stub:
    """A server that costs nothing. It answers when all clients wait, so that all their connections are idle at once."""

    def __init__(self, clients):
        self.clients, self.waiting = clients, 0
        self.all_wait = asyncio.Event()

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]))
                await self.turn()
                writer.write(HEAD + REPLY)
        except asyncio.IncompleteReadError:
            writer.close()

    async def turn(self):
        self.waiting += 1
        gate = self.all_wait
        if self.waiting == self.clients:
            self.waiting, self.all_wait = 0, asyncio.Event()
            gate.set()
        await asyncio.wait_for(gate.wait(), 30)


async def serve_load(url, clients):
    args = argparse.Namespace(pid=0, tokens=[4], vanish=0, bad=0)
    load = Load(url, args)
    figures = await load.run(clients, ROUNDS * clients)
    assert (figures["statuses"], load.wrong) == ({"200": ROUNDS * clients}, [])


async def engine_load(url, clients):
    figures = await run_round(url, OURS, clients, ROUNDS * clients, 1)
    assert figures["answered"] == ROUNDS * clients


def calls_of_a_request(load, clients):
    """Function calls in clients and stub for one request of so many clients."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    async def run():
        async with await asyncio.start_server(Stub(clients).serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            sys.setprofile(count)
            try:
                await load(f"http://127.0.0.1:{port}", clients)
            finally:
                sys.setprofile(None)

    asyncio.run(run())
    return calls / (ROUNDS * clients)


@pytest.mark.parametrize("load", [serve_load, engine_load])
def test_a_request_costs_the_same_however_many_clients_there_are(load):
    calls_of_a_request(load, 2)  # imports, and reads the certificates
    few, many = (calls_of_a_request(load, clients) for clients in (4, 40))
    assert many < 1.2 * few
