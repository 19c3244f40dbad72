"""Tables and figures of `bench.recipes`, from its results alone.

Tables go between `<!-- recipes: KIND -->` and `<!-- end -->` of docs/recipes.md, or to stdout if there is no such page.
`<!-- recipes: KIND HASH -->` takes the table of the base with this hash.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.recipe_list import BASE, RECIPES
from bench.recipes import read_lines

PAGE, IMAGES = Path("docs/recipes.md"), Path("docs/images")
DRAWN = ("full", "blocks of 4", "blocks of 16", "blocks of 64", "two views")  # curves beside the base
OWN_BOUND = ("attention", "blocks", "window")  # factors whose bound is another quantity than the base's
FAR = ("start",)  # so much worse that the other points would fall on one line
Line = Mapping[str, Any]


def plot(results: Path, base: str | None) -> None:
    """Draw and print what is in `results`, of one base for each kind (`base`: a prefix of its hash)."""
    lines = read_lines(results)
    if not lines:
        sys.exit(f"error: {results} has no results; python -m bench.recipes makes them")
    autoregressive = next((line for line in reversed(lines) if line["kind"] == "autoregressive"), None)
    for kind in RECIPES:
        found = of_one_base([line for line in lines if line["kind"] == kind], base)
        if not found:
            continue
        put(kind, "", table(kind, found, autoregressive))
        for named in bases_on_page(kind):
            if others := of_one_base([line for line in lines if line["kind"] == kind], named):
                put(kind, f" {named}", table(kind, others, autoregressive))
        for path in (curves(kind, found, autoregressive), differences(kind, found)):
            print(path)


def of_one_base(lines: Sequence[Line], base: str | None) -> list[Line]:
    """The lines with the base and budget of the newest line that has them."""
    wanted = [line for line in lines if base is None or line["base"].startswith(base)]
    return [line for line in wanted if all(line[name] == wanted[-1][name] for name in ("base", "budget"))]


def by_recipe(kind: str, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Finished runs by recipe, in the order of the list, each by seed."""
    found = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["seed"]):
        found[line["recipe"]].append(line)
    return {name: found[name] for name in RECIPES[kind] if name in found}


def table(kind: str, lines: Sequence[Line], autoregressive: Line | None) -> str:
    """Markdown: a row for each recipe. Differences from the base are those of equal seeds."""
    recipes = by_recipe(kind, lines)
    base = {line["seed"]: final(line) for line in recipes.get(BASE, []) if "diverged" not in line}
    devices = ", ".join(sorted({line["device"] for line in lines}))
    first = lines[0]
    rows = [
        f"{devices}; {first['budget']:g} s of training; {first['sequences']} held-out sequences, nats per token.",
        "",
        "| factor | recipe | bound, by seed | from the base | tokens, million | tokens/s | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in recipes.items():
        whole = [run for run in runs if "diverged" not in run]
        values = ", ".join("diverged" if "diverged" in run else f"{final(run):.3f}" for run in runs)
        apart = [final(run) - base[run["seed"]] for run in whole if run["seed"] in base]
        shown = ", ".join(f"{value:+.3f}" for value in apart) if name != BASE else ""
        note = " (another bound)" if runs[0]["factor"] in OWN_BOUND else ""
        measured = [
            f"{mean(run[key] for run in whole) / scale:,.{digits}f}" if whole else ""
            for key, scale, digits in (("tokens", 1e6, 2), ("tokens_per_second", 1, 0), ("peak_memory_gib", 1, 1))
        ]
        rows.append(f"| {runs[0]['factor']} | {name}{note} | {values} | {shown} | {' | '.join(measured)} |")
    if autoregressive is not None:
        exact = autoregressive[kind]
        rows.append(f"| | the autoregressive model before conversion | {exact['nll']:.3f} | | | | |")
    error = max(line["points"][-1]["error"] for line in lines)
    rows += [
        "",
        f"The standard error of a bound over sequences is up to {error:.3f}; all recipes are measured on the same.",
    ]
    return "\n".join(rows)


def final(line: Line) -> float:
    return line["points"][-1]["nelbo"]


def bases_on_page(kind: str) -> list[str]:
    """The hashes of the bases whose tables the page shows beside the main one."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    return re.findall(rf"<!-- recipes: {kind} (\w+) -->", page)


def put(kind: str, base: str, text: str) -> None:
    """Put a table into the page, or print it. base: as the page's mark has it after the kind."""
    marks = re.compile(rf"(<!-- recipes: {kind}{base} -->\n).*?(<!-- end -->)", re.DOTALL)
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if marks.search(page):
        PAGE.write_text(marks.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")
        print(f"{PAGE}: {kind}{base}")
    else:
        print(f"{kind}\n{text}\n")


def curves(kind: str, lines: Sequence[Line], autoregressive: Line | None) -> Path:
    """The bound against seconds and against tokens, the base and some others, mean over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    recipes = by_recipe(kind, lines)
    for name in [name for name in (BASE, *DRAWN) if name in recipes]:
        runs = [run["points"] for run in recipes[name] if "diverged" not in run]
        if not runs:
            continue
        bounds = [mean(values) for values in zip(*([p["nelbo"] for p in points] for points in runs), strict=True)]
        for axis, key, scale in zip(axes, ("seconds", "tokens"), (1, 1e6), strict=True):
            at = [mean(values) / scale for values in zip(*([p[key] for p in points] for points in runs), strict=True)]
            axis.plot(at[1:], bounds[1:], marker="o", markersize=3, label=name, linewidth=2 if name == BASE else 1)
    for axis, label in zip(axes, ("seconds of training", "tokens of training, million"), strict=True):
        if autoregressive is not None:
            axis.axhline(
                autoregressive[kind]["nll"], color="black", linestyle="--", linewidth=1, label="autoregressive"
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bound, nats per token")
    axes[1].legend(fontsize=8)
    return save(figure, f"recipes-{kind}-curves")


def differences(kind: str, lines: Sequence[Line]) -> Path:
    """Each recipe's final bound minus the base's, a point for each seed."""
    from matplotlib.figure import Figure

    recipes = by_recipe(kind, lines)
    base = {line["seed"]: final(line) for line in recipes.get(BASE, []) if "diverged" not in line}
    rows = []
    for name, runs in recipes.items():
        apart = [final(run) - base[run["seed"]] for run in runs if "diverged" not in run and run["seed"] in base]
        if apart and name != BASE and runs[0]["factor"] not in (*OWN_BOUND, *FAR):
            rows.append((f"{runs[0]['factor']}: {name}", apart))
    figure = Figure(figsize=(8, 1.2 + 0.22 * max(1, len(rows))), layout="constrained")
    axis = figure.subplots()
    for number, (_, apart) in enumerate(reversed(rows)):
        axis.plot(apart, [number] * len(apart), "o", markersize=4, color="tab:blue")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)], fontsize=8)
    axis.set_xlabel("bound minus the base's of the same seed, nats per token (left is better)")
    axis.grid(alpha=0.3, axis="x")
    return save(figure, f"recipes-{kind}-factors")


def save(figure: Any, name: str) -> Path:
    """Write an SVG, the same bytes for the same results."""
    import matplotlib as mpl

    path = IMAGES / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    return path
