"""Command lines for engines, read by the engines' own parsers where they are installed."""

import re
import shlex
from pathlib import Path

import pytest

from bench.engine_load import command
from bench.engine_speed import THEIRS
from qwen3llada.serving.sdar import commands


@pytest.fixture(scope="module")
def lmdeploy_parser():
    """parse(words after `lmdeploy`)"""
    pytest.importorskip("lmdeploy")
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.serve import SubCliServe

    SubCliServe.add_parsers()
    return CLI.parser.parse_args


def test_lmdeploy_of_serving_md(lmdeploy_parser):
    text = commands("/x/served", 16).replace("\\\n", " ")
    lines = [shlex.split(line.replace("…", "")) for line in re.findall(r"^ +lmdeploy (.*)$", text, re.MULTILINE)]
    assert len(lines) == 3
    alone, proxy, behind = (lmdeploy_parser(line) for line in lines)
    assert (alone.model_path, alone.backend, alone.dtype) == ("/x/served", "pytorch", "bfloat16")
    assert (alone.dllm_block_length, alone.dllm_denoising_steps) == (16, 16)
    assert lmdeploy_parser([*lines[0], "--tp", "4"]).tp == 4
    assert (proxy.server_port, behind.proxy_url) == (8000, "http://proxy:8000")


def test_lmdeploy_of_the_load_test(lmdeploy_parser):
    given = lmdeploy_parser(command(THEIRS, Path("m"), Path("/x/served"), 8, 1234)[3:])
    assert (given.server_port, given.dllm_denoising_steps, given.trust_remote_code) == (1234, 8, True)
