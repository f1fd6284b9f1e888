"""The command sensitivity, and `ptq --max-drop`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.app import app
from quantkit.cli.options import RUNS, Data, RunArgument, Runs, Set, say, say_next
from quantkit.cli.progress import progress
from quantkit.cli.steps import run_and_recipe, say_quantized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantkit.closeness import Closeness
    from quantkit.recipe import Recipe
    from quantkit.runs import Run
    from quantkit.sensitivity import Sensitivity, UnitSensitivity
    from quantkit.tokenization import Inputs

__all__ = ["ptq_within_and_say", "sensitivity"]


@app.command()
def sensitivity(
    run: RunArgument = "",
    bits: Annotated[int, typer.Option(help="Bits of the weights: 8 or 4.")] = 4,
    texts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Validation rows, and training texts, at most; default: 256 rows, 1000 texts.",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Quantize by this recipe, not the run's.")] = "",
    data: Data = None,
    runs: Runs = RUNS,
    changes: Set = None,
) -> None:
    """Quantize each part of a model alone and rank the parts by what the answers lose."""
    from quantkit.precision import run_sensitivity, sensitivity_file

    chosen, resolved = run_and_recipe(run, runs, recipe, changes, bits, make=False)
    with progress() as report:
        found = run_sensitivity(
            resolved, chosen, data or chosen.data(), rows=texts, progress=report
        )
    for line in _table(found):
        say(line)
    say(
        f"SQNR, labels equal and drop of {found.main.replace('_', ' ')} (float: "
        f"{100 * found.float_score:.1f}) on {found.validation_rows} validation rows; "
        f"{_divergence(found)} on {found.training_texts} training texts."
    )
    say(f"Analysis: {sensitivity_file(resolved, chosen)}")
    say_next(f"quantkit ptq {chosen.folder.name} --bits {bits} --max-drop 0.5")


def ptq_within_and_say(
    recipe: "Recipe",
    run: "Run",
    data: Path | None,
    max_drop: float,
    overwrite: bool,
    *,
    checkpoint: Path | None = None,
    texts: "Inputs | None" = None,
) -> None:
    """Search for the smallest model within a budget and make it; say its recipe lines."""
    from quantkit.precision import ptq_within

    with progress() as report:
        found = ptq_within(
            recipe,
            run,
            data,
            max_drop,
            checkpoint=checkpoint,
            texts=texts,
            overwrite=overwrite,
            progress=report,
        )
    lines = _recipe_lines(found.recipe, recipe)
    say("Recipe lines of this model:" if lines else "Nothing had to be promoted.")
    for line in lines:
        say(f"  {line}")
    close = found.closeness
    say(
        f"The packed model on the rows that decided: drop {close.drop:+.2f} points, labels equal "
        f"{100 * close.agreement:.2f} %, divergence {close.divergence:.2e}."
    )
    say_quantized(found.made)


def _recipe_lines(recipe: "Recipe", before: "Recipe") -> list[str]:
    """The slots that differ, as a recipe file has them."""
    lines = []
    for slot in ("eight_bits", "skip"):
        patterns: tuple[str, ...] = getattr(recipe, slot)
        if patterns != getattr(before, slot):
            # A pattern may begin with `*`, which YAML takes for an alias.
            lines.append(f"{slot}: [{', '.join(f'{pattern!r}' for pattern in patterns)}]")
    return lines


def _table(found: "Sensitivity") -> list[str]:
    """A header, a line per unit, the worst first, and the whole model."""
    header = ["layer", "part", "bits", "SQNR dB", "equal %", "drop", _divergence(found)]
    header += ["bytes", "less than 8 bits", "less than float"]
    rows = [
        [u.unit.label, u.unit.component, str(u.bits), *_numbers(u.closeness), *_bytes([u])]
        for u in found.units
    ]
    whole = ["the whole model", "", "", *_numbers(found.whole), *_bytes(found.units)]
    table = [header, *rows, whole]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in table]


def _numbers(closeness: "Closeness") -> list[str]:
    sqnr = "equal" if closeness.sqnr_db is None else f"{closeness.sqnr_db:.1f}"
    drop = f"{closeness.drop + 0.0:+.2f}"  # no -0.00
    return [sqnr, f"{100 * closeness.agreement:.2f}", drop, f"{closeness.divergence:.1e}"]


def _bytes(units: "Sequence[UnitSensitivity]") -> list[str]:
    """Size, and how much smaller than with 8 bits and than in float."""
    sizes = [(u.sizes.now, u.saved_against_8, u.saved_against_float) for u in units]
    return [f"{sum(column):,}" for column in zip(*sizes, strict=True)]


def _aligned(row: "Sequence[str]", widths: "Sequence[int]") -> list[str]:
    """Names on the left, numbers on the right."""
    cells = zip(row, widths, strict=True)
    return [f"{cell:<{w}}" if at < 2 else f"{cell:>{w}}" for at, (cell, w) in enumerate(cells)]


def _divergence(found: "Sensitivity") -> str:
    return {"regression": "MSE", "features": "1 - cosine"}.get(found.kind, "KL")
