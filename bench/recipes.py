"""Which recipe adapts a pretrained model best: every recipe trains for the same number of seconds on one device.

    python -m bench.recipes --list                              the recipes, by factor
    python -m bench.recipes --pretrain base lr --seeds 0 1      the base, and all recipes of the factor "lr"
    python -m bench.recipes --pretrain base full --sft all      then fine-tuning, from the models of these
    python -m bench.recipes --plot                              tables, and docs/images/recipes-*.svg, from the results
    python -m bench.recipes --builtin --budget 2 --device cpu   the tiny built-in model, in a minute

Model and data are those of a parameter set after `tokenize_pack`: pretrain.model, pretrain.data, sft.data, and
convert.src for the autoregressive line. Each recipe changes one thing of the set (bench/recipe_list.py); `--set
pretrain.optim.lr=2e-3` moves the base. Seconds are those of training: set-up, compilation and measurements come on top.
The measure is the held-out likelihood bound, which depends on neither loss nor noise of the training. Each finished run
adds a line to `--out`; runs that are in it are not repeated.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.recipe_inputs import builtin, read_params
from bench.recipe_list import BASE, RECIPES, SFT, Recipe, changes_nothing, merged

if TYPE_CHECKING:
    from qwen3llada.params import Params

OUT = Path("out/recipes.jsonl")
# The harness's own: no other measurements or checkpoints, and nothing to resume.
OWN = {"do_eval_loss": False, "save_steps": 0, "resume_from": "", "max_steps": 1000, "logging_steps": 50}
PATHS = ("model", "data", "dst", "output_dir", "reports")
OVERHEAD = 60.0  # seconds of a run beside its budget, until one has been measured


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    if given.list:
        list_recipes()
        return
    if given.plot:
        from bench.recipe_plots import plot

        plot(given.out, given.base)
        return
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    with tempfile.TemporaryDirectory() as scratch:
        params = builtin(Path(scratch)) if given.builtin else read_params(given.params)
        study(params, given, Path(scratch))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("configs/own-checkpoint.yaml"), help="parameter set")
    parser.add_argument("--builtin", action="store_true", help="the built-in model and world instead")
    parser.add_argument("--pretrain", nargs="*", default=["base"], help="recipes or factors of pretraining; all")
    parser.add_argument("--sft", nargs="*", default=[], help="recipes or factors of fine-tuning; all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of pretraining")
    parser.add_argument("--sft-budget", type=float, default=30.0, help="seconds of fine-tuning")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="pretrain.… and sft.…: moves the base"
    )
    parser.add_argument("--samples", type=int, default=128, help="held-out sequences; 0: all")
    parser.add_argument("--rounds", type=int, default=1, help="masks of each, at the points before the last")
    parser.add_argument("--final-rounds", type=int, default=4, help="and at the end of a run")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run that would not end by then")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--out", type=Path, default=OUT, help="results, one JSON line a run")
    parser.add_argument("--models", type=Path, default=Path("out/recipes"), help="models that fine-tuning starts from")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--base", help="of --plot: the base (a prefix of its hash); default: that of the last line")
    given = parser.parse_args(argv)
    if given.samples == 1 or given.samples < 0:
        parser.error(f"--samples {given.samples} must be 0 or at least 2: one sequence has no standard error")
    return given


def list_recipes() -> None:
    for kind, recipes in RECIPES.items():
        for name, recipe in recipes.items():
            changed = ", ".join([*map(str, recipe.changes.items()), f"rows x{recipe.rows:g}"])
            print(f"{kind:9} {recipe.factor:15} {name:28} {changed}, start {recipe.start}")


def chosen(kind: str, names: Sequence[str]) -> list[str]:
    """The recipes of a kind that are meant by names of recipes or factors, in the order of `names`."""
    recipes, found = RECIPES[kind], []
    for name in names:
        if name in recipes:
            found.append(name)
            continue
        group = [other for other, recipe in recipes.items() if name in ("all", recipe.factor)]
        if not group:
            factors = dict.fromkeys(recipe.factor for recipe in recipes.values())
            sys.exit(f"error: --{kind} {name!r} must be all, a recipe or a factor: {', '.join([*recipes, *factors])}")
        found += group
    return list(dict.fromkeys(found))


def study(params: "Params", given: argparse.Namespace, scratch: Path) -> None:
    """Make every chosen run that is not in `given.out`, seed by seed."""
    began, overhead = time.perf_counter(), OVERHEAD
    budgets = {"pretrain": given.budget, "sft": given.sft_budget}
    bases = {kind: base_of(params, kind, given.set) for kind in RECIPES}
    knobs = {kind: {name: value for name, value in base.items() if name not in PATHS} for kind, base in bases.items()}
    hashes = {"pretrain": digest(knobs["pretrain"]), "sft": digest([given.budget, knobs])}
    kept = {SFT[name].after for name in chosen("sft", given.sft)}
    if missing := kept - set(chosen("pretrain", given.pretrain)):
        sys.exit(f"error: --sft {' '.join(given.sft)} needs the models of --pretrain {' '.join(sorted(missing))} too")
    done = {key(line) for line in read_lines(given.out)}
    autoregressive_line(params, given, done)
    for seed, kind, name in runs(given):
        recipe = RECIPES[kind][name]
        facts = {"kind": kind, "recipe": name, "seed": seed, "budget": budgets[kind], "base": hashes[kind]}
        first = name if kind == "pretrain" else recipe.after
        model = given.models / f"{first}-{seed}-{given.budget:g}s-{hashes['pretrain']}"
        keep = kind == "pretrain" and name in kept
        if key(facts) in done and (model.is_dir() or not keep):
            continue
        if name != BASE and changes_nothing(recipe, bases[kind]):
            print(f"{kind} {name}: left out, it is the base", flush=True)
            continue
        late = time.perf_counter() - began + budgets[kind] + overhead > given.seconds
        if late or (kind == "sft" and not model.is_dir()):
            why = f"it would not end in {given.seconds:.0f} s" if late else f"{model} is not there"
            print(f"{kind} {name}, seed {seed}: left out, {why}", flush=True)
            continue
        folder = scratch / f"{kind}-{name}-{seed}".replace(" ", "_")
        section = section_of(params, kind, bases[kind], recipe, folder, model)
        result = one_run(params, section, recipe, seed, budgets[kind], given, keep=keep)
        overhead = result["whole_seconds"] - budgets[kind]  # of the last run
        moved = [item for item in given.set if kind == "sft" or item.startswith("pretrain.")]
        if key(facts) not in done:
            append(given.out, facts | {"factor": recipe.factor, "moved": moved} | machine() | result)


def runs(given: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """(seed, kind, recipe) in order: all of the first seed before the second, fine-tuning after pretraining."""
    for seed in given.seeds:
        for kind in RECIPES:
            for name in chosen(kind, getattr(given, kind)):
                yield seed, kind, name


def base_of(params: "Params", kind: str, moved: Sequence[str]) -> dict[str, Any]:
    """The section of the base, with what `--set` moves."""
    from ruamel.yaml import YAML

    base = getattr(params, kind).model_dump(mode="json")
    for item in moved:
        name, equals, text = item.partition("=")
        kind_named, *keys = name.split(".")
        if not equals or kind_named not in RECIPES or not keys:
            sys.exit(f"error: --set {item} must be like pretrain.optim.lr=2e-3")
        if kind_named == kind:
            change: Any = YAML(typ="safe").load(text)
            for knob in reversed(keys):
                change = {knob: change}
            base = merged(base, change)
    return base


def section_of(params: "Params", kind: str, base: Mapping[str, Any], recipe: Recipe, folder: Path, model: Path) -> Any:
    """The training section of a run. `model`: where pretraining writes its model, and where fine-tuning finds it."""
    places = {"output_dir": folder / "work", "reports": folder / "reports"}
    places |= {"dst": model} if kind == "pretrain" else {"dst": folder / "model", "model": model}
    rows = max(1, round(base["micro_batch_size"] * recipe.rows))
    section = merged(merged(base, recipe.changes), OWN | {"micro_batch_size": rows} | places)
    return type(getattr(params, kind)).model_validate(section)


def one_run(
    params: "Params", section: Any, recipe: Recipe, seed: int, budget: float, given: argparse.Namespace,
    *, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    import torch

    from bench.recipe_run import HeldOut, Probe, train_for

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts = HeldOut.read(section.data / "heldout", given.samples)
    probe = Probe(section.model, texts, device, rounds=given.rounds, final_rounds=given.final_rounds)
    template = params.sft_data.template if isinstance(section, type(params.sft)) else "plain"
    found = train_for(budget, section, probe, seed=seed, template=template, start_from=recipe.start, keep=keep)
    return {"sequences": len(texts.sequences), **found}


def autoregressive_line(params: "Params", given: argparse.Namespace, done: set[tuple[Any, ...]]) -> None:
    """The exact negative log-likelihood of the Qwen3 checkpoint that conversion started from, on the same data."""
    facts = {"kind": "autoregressive", "recipe": "none", "seed": 0, "budget": 0.0, "base": ""}
    if key(facts) in done:
        return
    import torch

    from bench.recipe_run import HeldOut
    from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
    from qwen3llada.evaluation.autoregressive import autoregressive_nll, load_qwen3

    cuda = torch.cuda.is_available()
    model = load_qwen3(Path(params.convert.src), dtype=torch.bfloat16 if cuda else torch.float32)
    model.to("cuda" if cuda else "cpu")
    tokenizer, found = load_tokenizer(Path(params.convert.src)), {}
    first = tokenizer.bos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    for name, data in {"pretrain": params.pretrain.data, "sft": params.sft.data}.items():
        texts = HeldOut.read(data / "heldout", given.samples)
        bound = autoregressive_nll(model, texts.sequences, prompt_lengths=texts.prompt_lengths, start_token=first)
        found[name] = {"nll": round(bound.nats, 5), "error": round(bound.standard_error, 5)}
    append(given.out, facts | machine() | found)


def machine() -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def digest(base: Any) -> str:
    """A hash of the knobs of a base."""
    return hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()[:8]


def key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a run the same as another."""
    return tuple(line[name] for name in ("kind", "recipe", "seed", "budget", "base"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to the results, and print the newest figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    shown = {name: value for name, value in line.items() if name not in ("points", "moved", "torch", "date")}
    points = [f"{point['seconds']:.0f} s {point['nelbo']:.3f}" for point in line.get("points", [])]
    print(json.dumps(shown), "|", ", ".join(points), flush=True)


if __name__ == "__main__":
    main()
