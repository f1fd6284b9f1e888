"""Commands that compare: bench, study, estimate."""

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.app import app
from quantkit.cli.options import (
    RUNS,
    Data,
    Device,
    Model,
    RecipeArgument,
    RunArgument,
    Runs,
    Set,
    Threads,
    changes_of,
    quoted,
    recipe_of,
    run_named,
    say,
    say_next,
)
from quantkit.cli.steps import measure_and_say, run_and_recipe

__all__ = ["bench", "estimate", "study"]


@app.command()
def bench(
    run: RunArgument = "",
    beside: Annotated[
        list[str] | None, typer.Option(help="Another run of the task, in the same report.")
    ] = None,
    data: Data = None,
    runs: Runs = RUNS,
    threads: Threads = None,
    engine: Annotated[
        str,
        typer.Option(
            help="onnxruntime, openvino (portable files), torch, or auto: ONNX Runtime on CPUs, on "
            "CUDA whichever measures faster."
        ),
    ] = "auto",
    device: Device = "cpu",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of optimized graphs: sessions open by them.")
    ] = None,
    changes: Set = None,
) -> None:
    """Measure float and quantized files side by side and write the report."""
    from quantkit.runs import find_run
    from quantkit.runtime import check_engine

    chosen, resolved = run_and_recipe(run, runs, "", changes, None, make=False)
    others = [find_run(name, runs) for name in beside or []]
    check_engine(engine, device)
    measure_and_say(
        *(resolved, chosen, data or chosen.data(), threads, others),
        engine=engine,
        device=device,
        cache=cache,
    )


@app.command()
def study(
    file: Annotated[str, typer.Argument(help="A study file, or a shipped one's name.")],
    model: Model = "",
    data: Data = None,
    results: Annotated[Path, typer.Option(help="Folder of the units' results.")] = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="Only this recipe; may repeat.")] = None,
    runs: Runs = RUNS,
    changes: Set = None,
) -> None:
    """Run tasks x methods x seeds; a finished unit is one JSON file and is not made again."""
    from quantkit.study import load_study, run_study, study_rows

    values = ({"model": quoted(model)} if model else {}) | changes_of(changes)
    loaded = load_study(file, values)
    run_study(loaded, results, runs, data, only=only or (), say=say)
    for line in study_rows(loaded, results):
        say(line)
    say(f"Results: {results}")


@app.command()
def estimate(
    recipe: RecipeArgument = "builtin.yaml",
    model: Model = "",
    devices: Annotated[int, typer.Option(min=1, help="Data-parallel processes.")] = 1,
    runs: Runs = RUNS,
    changes: Set = None,
) -> None:
    """Memory that fine-tuning will take, by the published formula; beside what a run took."""
    from quantkit.estimate import estimate_recipe

    resolved = recipe_of(recipe, model, changes_of(changes))
    found = estimate_recipe(resolved, devices)
    for line in found.lines():
        say(line)
    run = run_named(runs, resolved.name)
    if run.complete:
        training = run.training()
        device = training["device_peak_bytes"]
        say(f"{'measured in ' + str(run.folder):>32}  {training['peak_bytes'] / 1e6:10.1f} MB RAM")
        if device is not None:
            say(f"{'':>32}  {device / 1e6:10.1f} MB on the GPU")
    say_next(f"quantkit finetune {recipe}")
