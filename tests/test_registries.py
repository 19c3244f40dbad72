"""A new registry entry is enough for a new value of its knob: nothing else lists the names."""

import pytest
import torch
from pydantic import ValidationError

from qwen3llada.diffusion.corruption import NoiseParams
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.schedules import SCHEDULES
from qwen3llada.modeling.attention import POLICIES
from qwen3llada.modeling.params import AttentionParams
from qwen3llada.objective.params import KernelParams
from qwen3llada.params import load_stage
from qwen3llada.sampling import keyed_gumbel
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.params import DecodeParams, SampleParams
from qwen3llada.sampling.remasking import SCORES, Score
from qwen3llada.serving.formats import FORMATS
from qwen3llada.serving.params import ExportParams
from qwen3llada.training.params import PretrainParams, SftParams

KNOBS = [
    (SCHEDULES, NoiseParams, "schedule"),
    (NOISE_TYPES, NoiseParams, "noise_type"),
    (LOSSES, PretrainParams, "loss_impl"),
    (LOSSES, SftParams, "loss_impl"),
    (POLICIES, AttentionParams, "policy"),
    (POLICIES, KernelParams, "policy"),
    (SCORES, DecodeParams, "remasking"),
    (SCORES, SampleParams, "remasking"),
    (FORMATS, ExportParams, "format"),
]


@pytest.mark.parametrize(("registry", "section", "knob"), KNOBS)
def test_a_new_entry_is_accepted(registry, section, knob, monkeypatch):
    with pytest.raises(ValidationError, match=rf"{knob}='mine' must be one of \w+"):
        section.model_validate({knob: "mine"})
    monkeypatch.setitem(registry, "mine", next(iter(registry.values())))
    assert getattr(section.model_validate({knob: "mine"}), knob) == "mine"


@pytest.mark.parametrize(
    ("registry", "section", "flag"),
    [
        (SCHEDULES, "pretrain", "noise.schedule"),
        (NOISE_TYPES, "pretrain", "noise.noise_type"),
        (LOSSES, "sft", "loss_impl"),
        (POLICIES, "sft", "attention.policy"),
        (SCORES, "sample", "remasking"),
    ],
)
def test_it_is_accepted_on_the_command_line(registry, section, flag, monkeypatch):
    with pytest.raises(ValueError, match=f"{flag}: .*='mine' must be one of"):
        load_stage([f"--{flag}", "mine"], own=section)
    monkeypatch.setitem(registry, "mine", next(iter(registry.values())))
    params, _ = load_stage([f"--{flag}", "mine"], own=section)
    value = getattr(params, section)
    for name in flag.split("."):
        value = getattr(value, name)
    assert value == "mine"


@pytest.mark.parametrize(
    ("registry", "section", "flag"),
    [(SCORES, "sample", "remasking"), (SCHEDULES, "pretrain", "noise.schedule"), (LOSSES, "sft", "loss_impl")],
)
def test_help_shows_the_names_in_place_of_a_type(registry, section, flag, monkeypatch, capsys):
    monkeypatch.setitem(registry, "mine", next(iter(registry.values())))
    with pytest.raises(SystemExit):
        load_stage(["--help"], own=section)
    assert f"--{flag} {{{','.join(registry)}}}" in capsys.readouterr().out


def head_that_scores_by(remasking):
    return Head(
        project=lambda hidden: hidden.clone(),
        vocab_size=5,
        mask_token_id=4,
        temperature=0.0,
        cfg_scale=0.0,
        remasking=remasking,
    )


def test_a_new_noisy_score_gets_noise_and_one_that_does_not_say_so_is_refused(monkeypatch):
    monkeypatch.setitem(SCORES, "mine", Score(score=lambda proposal: 1 - proposal.uniform, noisy=True))
    monkeypatch.setitem(SCORES, "silent", Score(score=lambda proposal: 1 - proposal.uniform))
    keys = keyed_gumbel.row_keys(0, range(3))
    inputs = (torch.randn(3, 5), None, keys, keys, keys, torch.ones(3, dtype=torch.float64))
    scores = head_that_scores_by("mine").propose(*inputs).scores
    assert torch.equal(scores, 1 - keyed_gumbel.uniform(keys, 1)[:, 0])
    with pytest.raises(ValueError, match="must be entered in SCORES with noisy=True"):
        head_that_scores_by("silent").propose(*inputs)
