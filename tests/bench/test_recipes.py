"""The comparison of recipes: what a run measures, that it is the trainer's own run, and that finished ones are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import recipe_plots, recipe_run
from bench.recipe_inputs import builtin
from bench.recipe_list import RECIPES, changes_nothing, merged
from bench.recipes import base_of, chosen, parse, read_lines, section_of, study
from qwen3llada.evaluation.likelihood import nelbo
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.params import load
from qwen3llada.training.loop import train
from tests.training.runs import changed

ROOT = Path(__file__).parents[2]
FLAGS = ["--seeds", "0", "--samples", "6", "--final-rounds", "2", "--budget", "0.2", "--sft-budget", "0.1", "--set"]
FLAGS += ["pretrain.micro_batch_size=4", "sft.micro_batch_size=4", "pretrain.attention.policy=block_causal"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The parameters of the built-in world, smaller than in configs/ci.yaml, and its prepared data."""
    folder = tmp_path_factory.mktemp("builtin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("bench.recipe_inputs.read_params", lambda path: small(load(Path("params.yaml"), path)))
        return builtin(folder)


def small(params):
    world = {"people": 4, "documents": 100, "heldout_documents": 10, "bpe_tokens": 300, "hidden_size": 32}
    return type(params).model_validate(merged(params.model_dump(by_alias=True), {"builtin": world}))


@pytest.fixture(scope="module")
def studied(project, tmp_path_factory):
    """Flags and results of one pretraining and the fine-tuning after it."""
    folder = tmp_path_factory.mktemp("study")
    given = parse([*FLAGS, "--sft", "base", "--out", str(folder / "out.jsonl"), "--models", str(folder / "models")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe_run.REHEARSALS, "cpu", 2)
        study(project, given, folder)
    return given, read_lines(given.out)


def test_every_recipe_is_a_training_section_that_differs_by_one_thing(tmp_path):
    params = load(ROOT / "params.yaml", ROOT / "configs/own-checkpoint.yaml")
    for kind, recipes in RECIPES.items():
        base = base_of(params, kind, ["pretrain.optim.lr=6e-4", "pretrain.noise.t_range=[0.2, 0.9]"])
        plain = section_of(params, kind, base, recipes["base"], tmp_path, tmp_path / "m").model_dump()
        for name, recipe in recipes.items():
            section = section_of(params, kind, base, recipe, tmp_path, tmp_path / "m").model_dump()
            unlike = {knob for knob in plain if plain[knob] != section[knob]}
            assert unlike == set(recipe.changes) | ({"micro_batch_size"} if recipe.rows != 1 else set()), name
            assert unlike or recipe.start != "pretrained" or recipe.after != "base" or name == "base"
            assert recipe.start in recipe_run.STARTS
            assert recipe.after in RECIPES["pretrain"]


def test_recipes_are_chosen_by_name_and_by_factor(capsys):
    rates = [f"lr {rate}" for rate in ("3e-4", "5e-4", "7e-4", "1e-3", "2e-3", "4e-3")]
    assert chosen("pretrain", ["lr", "base", "lr 3e-4"]) == [*rates, "base"]
    assert chosen("sft", ["all"]) == list(RECIPES["sft"])
    with pytest.raises(SystemExit, match="--sft 'warm-up' must be all, a recipe or a factor: base, full"):
        chosen("sft", ["warm-up"])


def test_a_recipe_that_is_the_base_is_left_out(project, tmp_path, monkeypatch, capsys):
    base = base_of(project, "pretrain", ["pretrain.optim.lr=2e-3", "pretrain.noise.t_range=[0.1, 0.9]"])
    same = [name for name, recipe in RECIPES["pretrain"].items() if changes_nothing(recipe, base)]
    assert {"base", "t in 0.1 to 0.9", "lr 2e-3"} <= set(same)
    assert not {"two views", "half the rows", "random weights", "mask as EOS", "lr 1e-3"} & set(same)
    given = parse(
        [*FLAGS[:-1], "--pretrain", "lr 2e-3", "--set", "pretrain.optim.lr=2e-3", "--out", str(tmp_path / "o")]
    )
    monkeypatch.setattr("bench.recipes.autoregressive_line", lambda *args: None)
    monkeypatch.setattr("bench.recipes.one_run", lambda *args, **options: pytest.fail("it ran"))
    study(project, given, tmp_path)
    assert "pretrain lr 2e-3: left out, it is the base" in capsys.readouterr().out


def test_one_sequence_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--samples", "1"])
    assert "--samples 1 must be 0 or at least 2" in capsys.readouterr().err


def test_the_base_is_moved_and_a_knob_that_is_none_is_refused():
    params = load(ROOT / "params.yaml")
    moved = base_of(
        params, "pretrain", ["pretrain.optim.lr=2e-3", "sft.optim.lr=1", "pretrain.noise.t_range=[0.1, 0.9]"]
    )
    assert (float(moved["optim"]["lr"]), moved["noise"]["t_range"]) == (2e-3, [0.1, 0.9])
    assert moved["optim"] | {"lr": 0} == base_of(params, "pretrain", [])["optim"] | {"lr": 0}
    with pytest.raises(ValueError, match=r"\['lr'\] must be among"):
        base_of(params, "pretrain", ["pretrain.lr=1"])


def test_a_run_has_its_curve_and_the_bound_of_the_model_it_leaves(project, studied):
    given, lines = studied
    assert [line["kind"] for line in lines] == ["autoregressive", "pretrain", "sft"]
    for line in lines[1:]:
        points = line["points"]
        assert points[0]["step"] == points[0]["tokens"] == 0
        assert (points[-1]["share"], points[-1]["step"], points[-1]["tokens"]) == (1.0, line["steps"], line["tokens"])
        for key in ("step", "seconds", "tokens"):
            assert [p[key] for p in points] == sorted(p[key] for p in points)
    (model,) = given.models.iterdir()
    texts = recipe_run.HeldOut.read(project.pretrain.data / "heldout", given.samples)
    bound = nelbo(load_pretrained(model), texts.sequences, rounds=given.final_rounds)
    last = lines[1]["points"][-1]
    assert (last["nelbo"], last["error"]) == pytest.approx((bound.nats, bound.standard_error), abs=1e-4)
    assert last["nelbo"] < lines[1]["points"][0]["nelbo"]


def test_rehearsals_leave_no_trace(project, studied, tmp_path):
    """The run is bit for bit what the trainer makes of as many steps."""
    given, lines = studied
    base = base_of(project, "pretrain", given.set)
    section = section_of(project, "pretrain", base, RECIPES["pretrain"]["base"], tmp_path, tmp_path / "model")
    train(changed(section, max_steps=lines[1]["steps"]), seed=0)
    (kept,) = given.models.iterdir()
    ours, theirs = (load_pretrained(folder).state_dict() for folder in (kept, tmp_path / "model"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_finished_runs_are_not_repeated(project, studied, tmp_path, monkeypatch):
    given, lines = studied
    given = parse([*FLAGS, "--sft", "base", "--out", str(tmp_path / "out.jsonl"), "--models", str(given.models)])
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    made = []
    monkeypatch.setattr("bench.recipes.one_run", lambda *a, **b: made.append(a[2].factor) or {"whole_seconds": 1})
    study(project, given, tmp_path)
    assert len(made) == 1
    assert [line["kind"] for line in read_lines(given.out)] == ["autoregressive", "pretrain", "sft"]
    study(project, given, tmp_path)
    assert len(made) == 1
    given.seconds = 0.0
    given.seeds = [0, 1]
    study(project, given, tmp_path)  # no time left for the second seed
    assert len(made) == 1
    given.sft = ["full"]
    with pytest.raises(SystemExit, match="--sft full needs the models of --pretrain full too"):
        study(project, given, tmp_path)


def test_starting_weights(project, studied, tmp_path):
    from qwen3llada.training.start.start import start

    section = section_of(
        project, "pretrain", base_of(project, "pretrain", []), RECIPES["pretrain"]["base"], tmp_path, tmp_path / "model"
    )
    run = start(section, seed=0, template="plain")
    weight, mask = run.model.get_input_embeddings().weight, run.model.config.mask_token_id
    before = weight.detach().clone()
    known = np.delete(np.arange(len(run.tokenizer)), mask)
    rows = {"mask_mean": before[known].double().mean(0).float(), "mask_eos": before[run.tokenizer.eos_token_id]}
    for name, row in rows.items():
        recipe_run.STARTS[name](run, torch.Generator().manual_seed(0))
        assert torch.allclose(weight[mask], row)
        assert torch.equal(weight[known], before[known])
    recipe_run.STARTS["random"](run, torch.Generator().manual_seed(0))
    assert weight.detach().std() == pytest.approx(run.model.config.initializer_range, rel=0.1)
    assert all((p == 1).all() for name, p in run.model.named_parameters() if name.endswith("norm.weight"))


def test_tables_and_figures_come_from_the_results(studied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    _, lines = studied
    marks = [f"<!-- recipes: pretrain{base} -->\nold\n<!-- end -->\n" for base in ("", " ab12")]
    (tmp_path / "docs/recipes.md").write_text(f"# Recipes\n{marks[0]}{marks[1]}after\n")
    other = lines[1] | {"base": "ab12cd34", "seed": 7, "device": "another device"}
    worse = lines[1] | {"recipe": "lr 2e-3", "factor": "lr"}
    worse["points"] = [*worse["points"][:-1], worse["points"][-1] | {"nelbo": lines[1]["points"][-1]["nelbo"] + 0.25}]
    lost = lines[1] | {"recipe": "lr 4e-3", "factor": "lr", "diverged": "loss nan", "points": worse["points"][:1]}
    results = tmp_path / "out.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in [other, *lines, worse, lost]))
    recipe_plots.plot(results, None)
    page = (tmp_path / "docs/recipes.md").read_text()
    assert page.startswith("# Recipes\n<!-- recipes: pretrain -->\ncpu; 0.2 s of training; ")
    assert page.endswith("<!-- end -->\nafter\n")
    first, second = page.split("<!-- recipes: pretrain ab12 -->\n")
    assert second.startswith("another device; ")
    assert ("another device" in first, "lr 2e-3" in second) == (False, False)
    assert "old" not in page
    assert "| +0.250 |" in page
    assert "| lr | lr 4e-3 | diverged |" in page
    assert f"before conversion | {lines[0]['pretrain']['nll']:.3f} |" in page
    assert "base" in capsys.readouterr().out  # no place on the page for fine-tuning
    drawn = sorted(path.name for path in (tmp_path / "docs/images").iterdir())
    assert drawn == [f"recipes-{kind}-{what}.svg" for kind in ("pretrain", "sft") for what in ("curves", "factors")]
