"""Measuring a run's files side by side, and other runs' beside them, into one report."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from quantkit.checkpoint import length_limit, load_float
from quantkit.data import TaskData, inputs_of, load_task, references_of
from quantkit.encoder import head_of
from quantkit.errors import CheckpointError, DataError
from quantkit.exporter.inspect import bytes_by_component
from quantkit.files import read_json
from quantkit.graph_cache import cached_graph
from quantkit.heads import Head
from quantkit.measure import Measured, environment, measure
from quantkit.metrics import MAIN
from quantkit.onnx_file import FOLDERS, TARGETS, Target, exported_targets, find_onnx
from quantkit.packed import METADATA
from quantkit.pipeline import export_float
from quantkit.quantized_folder import parity_file
from quantkit.recipe import Recipe, recipe_hash
from quantkit.report import SCHEMA, CandidateReport, Report, candidate_report, save_report
from quantkit.runs import Run
from quantkit.runtime import load
from quantkit.tokenization import Inputs

__all__ = ["bench"]

LONGER = "float, trained on"


@dataclass(frozen=True)
class _Engine:
    """What opens the candidates, by the arguments of `quantkit.load`."""

    name: str
    device: str
    cache: Path | None

    @property
    def place(self) -> str:
        """Where files run: a key of `TARGETS`."""
        return self.name if self.name == "openvino" else self.device

    @property
    def reads_files(self) -> bool:
        """Whether it opens the ONNX file; the torch engine reads the checkpoint."""
        by_default = self.name == "auto" and self.device == "cpu"
        return by_default or self.name in ("onnxruntime", "openvino")


@dataclass(frozen=True)
class _Candidate:
    """One file to measure, and the run it belongs to."""

    name: str
    run: Run
    folder: Path

    def path(self, place: str) -> Path:
        """The ONNX file for a key of `TARGETS`, or where there is none that for another one."""
        there = set(exported_targets(self.folder))
        fitting = (each for each in (place, *TARGETS) if there & set(TARGETS[each]))
        return find_onnx(self.folder, next(fitting, place))

    def foreign_to(self, engine: _Engine) -> bool:
        """Whether it is quantized, and has files for others only."""
        there = set(exported_targets(self.folder))
        runs = not engine.reads_files or there & set(TARGETS[engine.place])
        return (self.folder / METADATA).is_file() and bool(there) and not runs

    def opened(self, engine: _Engine) -> Path:
        """What the engine opens."""
        return self.path(engine.place) if engine.reads_files else self.folder


def bench(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    threads: int | None = None,
    beside: Sequence[Run] = (),
    engine: str = "auto",
    device: str = "cpu",
    cache: Path | None = None,
) -> Report:
    """Measure files on the full test set; write the report into the run's folder.

    The candidates are the run's float model, that trained on for as many steps as `qat` trained
    if there is one, the quantized ones, and the same of each run in `beside`, e.g. a smaller model
    trained on the same task. `engine`, `device` and `cache` are those of `quantkit.load`. A
    quantized model that was exported for another device only is left out, with a note.

    Raises:
        CheckpointError: the run is not quantized yet, or a file is missing.
        DataError: a run beside that answers something else.
        MeasurementError: a candidate's process failed.
    """
    task = load_task(recipe.task, data, recipe.data)
    model, tokenizer = load_float(run.float_folder)
    limit = length_limit(model, tokenizer, recipe.max_length)
    head, width = head_of(model), _embedding_width(model)
    del model
    opener = _Engine(engine, device, cache)
    everything = list(_candidates(recipe, run, head, beside, opener))
    candidates = [each for each in everything if not each.foreign_to(opener)]
    grown = _fill_cache(candidates, opener)
    test = task.splits["test"]
    measured = _measured(candidates, inputs_of(test, task.head), recipe, limit, threads, opener)
    packed = [folder / METADATA for folder in run.quantized_folders()]
    own = run.quantized_folder(recipe) / METADATA
    trimmed_rows = read_json(own)["trimmed_rows"] if own.is_file() else 0
    training = run.training()
    report = Report(
        schema=SCHEMA,
        name=run.folder.name,
        task=recipe.task,
        head=task.head.to_json(),
        main=MAIN[task.head.kind],
        recipe=asdict(recipe),
        recipe_hash=recipe_hash(recipe),
        environment=environment(threads),
        test_rows=len(test),
        max_length=limit,
        seed=recipe.finetune.seed,
        trimmed_bytes=trimmed_rows * width * 4,
        candidates=_reports(candidates, measured, task, run, opener),
        notes=(
            *_notes(candidates, packed),
            *(_left_out(each, opener) for each in everything if each not in candidates),
            *grown,
            *_engine_notes(measured),
        ),
        curves=tuple(training["curve"]),
        history=tuple(training["history"]),
    )
    save_report(report, run.folder)
    return report


def _candidates(
    recipe: Recipe, run: Run, head: Head, beside: Sequence[Run], engine: _Engine
) -> Iterator[_Candidate]:
    """The float file of each run, made if need be, and all its quantized ones."""
    target: Target = "portable" if engine.name == "openvino" else "cpu"
    for which in (run, *beside):
        own = recipe if which is run else which.recipe()
        prefix = "" if which is run else f"{which.folder.name} "
        if which is not run:
            _check_same_task(recipe, run, head, which)
        if not (which.float_folder / FOLDERS[target] / "model.onnx").is_file():
            export_float(which.float_folder, own, target)
        yield _Candidate(f"{prefix}float", which, which.float_folder)
        if (longer := which.longer_folder).is_dir():
            if not (longer / FOLDERS[target] / "model.onnx").is_file():
                export_float(longer, own, target)
            yield _Candidate(f"{prefix}{LONGER}", which, longer)
        quantized = which.quantized_folders()
        if not quantized and which is run and not own.is_recurrent:
            raise CheckpointError(
                f"{which.quantized_folder(own)} is not there. Make it first: "
                f"quantkit ptq {run.folder.name}"
            )
        for folder in quantized:
            name = folder.name.replace("w8a8", "int8")
            yield _Candidate(f"{prefix}{name}", which, folder)


def _check_same_task(recipe: Recipe, run: Run, head: Head, other: Run) -> None:
    """The same task, and for tables of one's own the same answers."""
    task, answers = other.recipe().task, head_of(load_float(other.float_folder)[0])
    if task != recipe.task or answers != head:
        raise DataError(
            f"{other.folder} is of the task {task} and answers {answers.kind} "
            f"({', '.join(answers.labels)}), and {run.folder} of {recipe.task}, {head.kind} "
            f"({', '.join(head.labels)}): only runs of one task can stand beside one another."
        )


def _embedding_width(model: PreTrainedModel) -> int:
    """Columns of the word table, which ALBERT and ELECTRA have fewer of than hidden ones."""
    config = model.config
    return int(getattr(config, "embedding_size", 0) or getattr(config, "hidden_size", 0))


def _measured(
    candidates: Sequence[_Candidate],
    inputs: Inputs,
    recipe: Recipe,
    limit: int,
    threads: int | None,
    engine: _Engine,
) -> dict[str, Measured]:
    """All candidates in the shapes of the recipe that the model has room for."""
    return measure(
        {candidate.name: candidate.opened(engine) for candidate in candidates},
        inputs,
        shapes=[(b, n) for b in recipe.bench.batches for n in recipe.bench.lengths if n <= limit],
        rounds=recipe.bench.rounds,
        repeats=recipe.bench.repeats,
        threads=threads,
        engine=engine.name,
        device=engine.device,
        cache=engine.cache,
    )


def _fill_cache(candidates: Sequence[_Candidate], engine: _Engine) -> list[str]:
    """Make the optimized graphs that measured sessions open by; what was warned of them."""
    if engine.cache is None or not engine.reads_files:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in candidates:
            path = each.path(engine.place)
            load(path, device=engine.device, engine=engine.name, cache=engine.cache)
    return [str(each.message) for each in caught]


def _left_out(candidate: _Candidate, engine: _Engine) -> str:
    found = ", ".join(exported_targets(candidate.folder))
    if engine.name == "openvino":
        instead = (
            f"OpenVINO runs portable ones. Make one: quantkit export {candidate.folder} "
            f"--target portable"
        )
    else:
        instead = (
            f"all here runs on {engine.device}. Measure it there: "
            f"quantkit bench {candidate.run.folder.name} --device {found}"
        )
    return f"{candidate.name} is not in this report: its files are for {found}, and {instead}"


def _cached_bytes(path: Path, engine: _Engine) -> int | None:
    """Bytes of the optimized graph that a session opened by, if it did."""
    if engine.cache is None or not engine.reads_files or engine.place != "cpu":
        return None
    graph = cached_graph(path, engine.cache)
    return None if graph is None else graph.stat().st_size


def _reports(
    candidates: Sequence[_Candidate],
    measured: dict[str, Measured],
    task: TaskData,
    run: Run,
    engine: _Engine,
) -> tuple[CandidateReport, ...]:
    references = references_of(task.splits["test"], task.head)
    paths = [candidate.path(engine.place) for candidate in candidates]
    return tuple(
        candidate_report(
            candidate.name,
            os.path.relpath(path, run.folder),
            measured[candidate.name],
            head=task.head,
            references=references,
            components=bytes_by_component(path),
            parity=read_json(parity_file(path, candidate.folder)),
            parameters=int(candidate.run.training()["parameters"]),
            baseline=None if at == 0 else measured[candidates[0].name],
            control=measured.get(LONGER) if candidate.folder.name.endswith("-qat") else None,
            training=candidate.run.training_of(candidate.folder),
            cache_bytes=_cached_bytes(path, engine),
        )
        for at, (candidate, path) in enumerate(zip(candidates, paths, strict=True))
    )


def _notes(candidates: Sequence[_Candidate], packed: Sequence[Path]) -> tuple[str, ...]:
    """What every run says of its data and model, once each, and of the quantization."""
    notes = [note for candidate in candidates for note in candidate.run.training()["notes"]]
    notes += [note for file in packed for note in read_json(file)["notes"]]
    return tuple(dict.fromkeys(notes))


def _engine_notes(measured: dict[str, Measured]) -> list[str]:
    """How each candidate was opened, and what it held on a GPU."""
    notes = [f"{name}: {note}" for name, found in measured.items() for note in found.notes]
    return notes + [
        f"{name} held at most {found.device_peak_bytes / 1e6:.1f} MB on the GPU."
        for name, found in measured.items()
        if found.device_peak_bytes is not None
    ]
