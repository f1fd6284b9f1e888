"""Steps that several commands take, each saying what came out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quantkit.cli.options import changes_of, recipe_of, run_named, say, say_predict
from quantkit.cli.progress import progress
from quantkit.errors import CheckpointError

if TYPE_CHECKING:
    from quantkit.recipe import Recipe
    from quantkit.runs import Run

__all__ = [
    "finetune_and_say",
    "measure_and_say",
    "ptq_and_say",
    "resolved",
    "run_and_recipe",
    "say_quantized",
]

COSTLIEST = 5  # layers that are named with what they lost


def run_and_recipe(
    name: str,
    runs: Path,
    recipe: str,
    changes: list[str] | None,
    bits: int | None,
    make: bool = True,
    target: str = "",
) -> tuple["Run", "Recipe"]:
    """The named run, else the latest, else (if `make`) the built-in one, made now."""
    from quantkit.recipe import builtin_recipe
    from quantkit.runs import find_run, latest_run

    checked = resolved(builtin_recipe(), bits, None, target)  # before any work: is that supported?
    chosen = find_run(name, runs) if name else latest_run(runs)
    if chosen is None:
        if not make:
            raise CheckpointError(
                f"{runs} holds no finished run. Make one: quantkit run builtin.yaml"
            )
        say(f"{runs} holds no finished run: making the built-in one first.")
        chosen = run_named(runs, checked.name)
        finetune_and_say(checked, chosen, None, chosen.training_folder.is_dir(), overwrite=False)
    elif not name:
        say(f"Taking the latest run: {chosen.folder}")
    base = recipe_of(recipe, "", {}) if recipe else chosen.recipe()
    return chosen, resolved(base, bits, changes, target)


def resolved(
    base: "Recipe", bits: int | None, changes: list[str] | None, target: str = ""
) -> "Recipe":
    """A recipe with what --bits and --target ask for, and then the values of --set."""
    from quantkit.recipe import with_bits, with_changes, with_target

    chosen = base if bits is None else with_bits(base, bits)
    chosen = with_target(chosen, target) if target else chosen
    return with_changes(chosen, changes_of(changes))


def finetune_and_say(
    recipe: "Recipe", run: "Run", data: Path | None, resume: bool, overwrite: bool
) -> bool:
    """Fine-tune; of several processes one speaks. Whether this is that one."""
    from quantkit import pipeline

    result = pipeline.finetune(recipe, run, data, resume=resume, overwrite=overwrite)
    if not pipeline.is_main_process():
        return False
    say(
        f"Fine-tuned {recipe.model} on {recipe.task}: validation score "
        f"{100 * result.best_score:.1f} % in epoch {result.best_epoch}, {result.steps} steps, "
        f"{result.seconds:.0f} s."
    )
    say(f"Checkpoint: {run.float_folder}")
    return True


def ptq_and_say(recipe: "Recipe", run: "Run", data: Path | None, overwrite: bool) -> None:
    """Quantize a run's float model."""
    from quantkit import pipeline

    with progress() as report:
        made = pipeline.ptq(recipe, run, data, overwrite=overwrite, progress=report)
    say_quantized(made)


def say_quantized(made: Any) -> None:  # noqa: ANN401
    """Where a quantized folder lies, and what is to be known of it."""
    for line in _costs(made.quantized.decisions):
        say(line)
    for note in made.quantized.notes:
        say(f"Note: {note}")
    say(f"Packed checkpoint: {made.folder}")
    say(f"ONNX, verified on {made.exported.parity.rows} rows: {made.exported.path}")


def _costs(decisions: Sequence[Any]) -> list[str]:
    """The inputs whose products lost most, the worst first."""
    worst = sorted(decisions, key=lambda decision: decision.error, reverse=True)[:COSTLIEST]
    if not worst:
        return []
    width = max(len(decision.linears[0]) for decision in worst)
    lines = [
        f"  {decision.linears[0]:<{width}}  {decision.bits} bits  "
        f"{-10.0 * math.log10(max(decision.error, 1e-12)):5.1f} dB"
        for decision in worst
    ]
    return [f"Least exact of {len(decisions)} products (all are in quantkit.json):", *lines]


def measure_and_say(
    recipe: "Recipe",
    run: "Run",
    data: Path | None,
    threads: int | None,
    beside: Sequence["Run"],
    engine: str = "auto",
    device: str = "cpu",
    cache: Path | None = None,
) -> None:
    """Measure, write the report, print it."""
    from quantkit.comparison import bench
    from quantkit.report import to_markdown

    report = bench(
        *(recipe, run, data),
        threads=threads,
        beside=beside,
        engine=engine,
        device=device,
        cache=cache,
    )
    typer.echo(to_markdown(report))
    say(f"Report: {run.folder / 'report.json'} and report.md")
    folder = run.float_folder if recipe.is_recurrent else run.quantized_folder(recipe)
    say_predict(folder)
