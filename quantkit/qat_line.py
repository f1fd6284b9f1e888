"""The verb `qat`: quantize a fine-tuned model, train it further, and end packed behind the gate.

The folder that appears last is `runs/NAME/w4a8-qat`; before it `w4a8`, which training starts from,
and `float-longer`, the float model trained on for as many steps, without which a gain could be
just more training. A killed run goes on with `resume` to the bits of one that was never killed.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel

from quantkit.checkpoint import load_float, save_float
from quantkit.data import TaskData, inputs_of, load_task
from quantkit.errors import OutputExistsError, RecipeError
from quantkit.exporter import Exported
from quantkit.file_check import FileCheck, check_file
from quantkit.files import new_folder, read_json, refuse_existing, write_json
from quantkit.method import Method, plain
from quantkit.packed import METADATA
from quantkit.pipeline import refuse_recurrent
from quantkit.prediction import predict
from quantkit.ptq import LayerStore, Progress, Quantized
from quantkit.qat import pack, prepare
from quantkit.qat_method import qat_method
from quantkit.quantized_folder import QuantizedCheckpoint, quantize_checkpoint, write_quantized
from quantkit.recipe import Qat, Recipe, parse_recipe, with_changes
from quantkit.runs import TRAINING, Run
from quantkit.starting_point import refuse_unlabelled
from quantkit.teacher import check_teacher
from quantkit.train import TrainingResult, finetune
from quantkit.training_rows import TrainingRows
from quantkit.training_setup import processes_of_run
from quantkit.training_slots import Training

__all__ = ["TrainedFolder", "qat", "recorded_recipe", "with_qat"]

# The slots that decide what a quantized model is.
QUANTIZATION = (
    *("max_length", "calibration", "weights", "activations", "embeddings", "smoothing"),
    *("rounding", "compensation", "bias_correction", "skip", "eight_bits"),
)

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class TrainedFolder:
    """A packed checkpoint that was trained, with its verified ONNX file.

    Attributes:
        folder: where it is.
        quantized: the model in it.
        exported: the file and the gate's findings.
        training: how it was trained.
        before: the validation score that training began with.
        check: what file and model say of the test rows.
    """

    folder: Path
    quantized: Quantized
    exported: Exported
    training: TrainingResult
    before: float
    check: FileCheck


def with_qat(recipe: Recipe) -> Recipe:
    """The recipe with the defaults of its slot `qat` written out, checked like a file.

    Raises:
        RecipeError: the other slots contradict it.
    """
    return recipe if recipe.qat is not None else with_changes(recipe, {"qat": asdict(Qat())})


def recorded_recipe(folder: Path) -> Recipe | None:
    """What a packed folder was quantized by; None if there is no such folder."""
    file = folder / METADATA
    return parse_recipe(read_json(file)["recipe"], str(file)) if file.is_file() else None


def qat(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    folder: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    shown: bool = True,
    on_step: OnStep | None = None,
) -> TrainedFolder | None:
    """Quantize a run's float model, train it further, write packed checkpoint and ONNX.

    Under `accelerate launch` all processes train, the first one writes, the others return None.

    Args:
        recipe: the slots of quantization, and `qat`.
        run: a finished one.
        data: the dataset's folder.
        folder: where to, within the run's; default: its `qat_folder`, and then what training
            starts from is written too.
        resume: go on with what a kill interrupted.
        overwrite: replace the folder, and forget an interrupted training.
        progress: told what quantization has done, how much is done, and of how much.
        shown: whether training shows a bar on a terminal.
        on_step: called after each training step, the control's included.

    Raises:
        OutputExistsError: the folder exists, or was interrupted and neither flag is given.
        ParityError: the file failed the gate, or scores differently from the trained model.
        RecipeError: slots that contradict one another, a teacher that cannot teach, a run
            quantized otherwise, or a training that diverged.
    """
    refuse_recurrent(recipe, run)
    recipe = with_qat(recipe)
    start = run.quantized_folder(recipe) if folder is None else None
    work = _Work(recipe, run, folder or run.qat_folder(recipe), start, shown, on_step)
    work.refuse_if_there(resume=resume, overwrite=overwrite)
    processes = processes_of_run()
    with processes.main_process_first():  # one quantizes, the others find its layers
        task = load_task(recipe.task, data, recipe.data)
        refuse_unlabelled(task)
        made = work.quantized(task, progress)
    rows = TrainingRows.of(task, made.model, made.tokenizer, made.limit)
    trained = prepare(made.model, made.quantized, work.slot.scales)
    method = work.method(trained, made, rows)
    if processes.is_main_process:
        work.keep_start(made)
        work.state.parent.mkdir(parents=True, exist_ok=True)
    if work.slot.control:
        work.train_float_longer(rows, processes)
    before = _standing(trained, rows, method)
    result = work.train(trained, rows, work.slot, work.state, method)
    found = None
    if processes.is_main_process:
        found = work.keep(trained, made, task, method, result, before)
    processes.wait_for_everyone()
    return found


def _standing(model: PreTrainedModel, rows: TrainingRows, method: Method) -> dict[str, float]:
    """What the validation rows say of a model; see `Method.standing`."""
    outputs = predict(model, rows.validation, pad_token_id=rows.pad_token_id)
    return method.standing(rows.score(rows.validation.references(), outputs), outputs)


def _changed(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What models compete by, before training and after it."""
    if "validation_divergence" in before:
        old, new = (each["validation_divergence"] for each in (before, after))
        what = "validation rows' divergence from the teacher's answers"
        return f"the {what} was {old:.5f} before it and is {new:.5f}"
    old, new = (100 * each["validation_score"] for each in (before, after))
    return f"the validation score was {old:.2f} before it and is {new:.2f}"


@dataclass(frozen=True)
class _Work:
    """One run of the verb: what is made, and where it goes."""

    recipe: Recipe
    run: Run
    folder: Path
    start: Path | None  # what post-training quantization alone gives; None: not written
    shown: bool
    on_step: OnStep | None

    @property
    def slot(self) -> Qat:
        return self.recipe.qat or Qat()

    @property
    def state(self) -> Path:
        return self.run.state_folder(self.folder)

    @property
    def layers(self) -> LayerStore:
        return LayerStore(self.folder.with_name(f".{self.folder.name}.layers"))

    def refuse_if_there(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write over an earlier training, or to start from another quantization."""
        states = (self.state, self.run.state_folder(self.run.longer_folder))
        if overwrite:
            for state in states:
                shutil.rmtree(state, ignore_errors=True)
        else:
            refuse_existing(self.folder)
            if not resume and any(state.is_dir() for state in states):
                raise OutputExistsError(
                    f"The training of {self.folder} was interrupted. Pass --resume to continue "
                    f"it, or --overwrite to start again."
                )
        known = None if self.start is None else recorded_recipe(self.start)
        apart = [s for s in QUANTIZATION if known and getattr(known, s) != getattr(self.recipe, s)]
        if apart:
            raise RecipeError(
                f"{self.start} was quantized with another {apart[0]} than this recipe has, and "
                f"training would start from something else than what stands beside it in "
                f"reports. Quantize it anew by this recipe: quantkit ptq {self.run.folder.name} "
                f"--recipe RECIPE --overwrite"
            )

    def quantized(self, task: TaskData, progress: Progress | None) -> QuantizedCheckpoint:
        """The state that training starts from; the same bits each time."""
        train, validation = (inputs_of(task.splits[n], task.head) for n in ("train", "validation"))
        made = quantize_checkpoint(
            self.recipe,
            self.run.float_folder,
            train,
            store=self.layers,
            held_out=validation,
            say=progress,
        )
        source = str(self.run.float_folder)
        check_teacher(source, made.model, made.tokenizer, task.head, made.tokenizer)
        return made

    def keep_start(self, made: QuantizedCheckpoint) -> None:
        """Write what post-training quantization alone gives, unless it is there."""
        if self.start is not None and not (self.start / METADATA).is_file():
            with new_folder(self.start, overwrite=True) as partial:
                write_quantized(made, made.quantized, partial)

    def train_float_longer(self, rows: TrainingRows, processes: PartialState) -> None:
        """Train the float model on by the same settings, unless that was done."""
        folder, shared = self.run.longer_folder, self.slot.shared()
        settings = asdict(shared)
        file = folder / TRAINING
        if file.is_file() and read_json(file)["settings"] == settings:
            return
        model, tokenizer = load_float(self.run.float_folder)
        state = self.run.state_folder(folder)
        own = TrainingRows.of(rows.task, model, tokenizer, rows.limit)
        method = plain(model, rows.task.head, shared, "qat")
        result = self.train(model, own, shared, state, method)
        if processes.is_main_process:
            with new_folder(folder, overwrite=True) as partial:
                save_float(model, tokenizer, partial)
                write_json(partial / TRAINING, {**asdict(result), "settings": settings})
            shutil.rmtree(state, ignore_errors=True)
        processes.wait_for_everyone()

    def method(
        self, trained: PreTrainedModel, made: QuantizedCheckpoint, rows: TrainingRows
    ) -> Method:
        """How `trained`, made of `made`, is trained."""
        head, validation = rows.task.head, rows.validation
        return qat_method(
            trained, made.model, made.quantized, made.tokenizer, head, self.slot, validation
        )

    def train(
        self,
        model: PreTrainedModel,
        rows: TrainingRows,
        settings: Training,
        state: Path,
        method: Method,
    ) -> TrainingResult:
        """Train in place, from the state if there is one."""
        return finetune(
            model,
            rows.train,
            rows.validation,
            settings,
            pad_token_id=rows.pad_token_id,
            score=rows.score,
            state_folder=state,
            method=method,
            resume=True,  # `refuse_if_there` has seen to it that a state is to be gone on with
            progress=self.shown,
            on_step=self.on_step,
        )

    def keep(
        self,
        trained: PreTrainedModel,
        made: QuantizedCheckpoint,
        task: TaskData,
        method: Method,
        result: TrainingResult,
        before: Mapping[str, float],
    ) -> TrainedFolder:
        """Pack, export, check and record; then forget what a killed run would have needed."""
        trained.to("cpu")  # type: ignore[arg-type]  # where files are made and checked
        packed = pack(trained, made.quantized)
        packed = replace(packed, notes=(*packed.notes, *self._notes(method, result, before)))
        with new_folder(self.folder, overwrite=True) as partial:
            exported = write_quantized(made, packed, partial)
            check = check_file(trained, made.tokenizer, partial, task, made.limit)
            record = {
                **asdict(result),
                "settings": asdict(self.slot),
                "validation_score_before": before["validation_score"],
                "validation_divergence_before": before.get("validation_divergence"),
                "test": asdict(check),
            }
            write_json(partial / TRAINING, record)
        shutil.rmtree(self.state, ignore_errors=True)
        self.layers.clear()
        exported = replace(exported, path=self.folder / exported.path.relative_to(partial))
        score = before["validation_score"]
        return TrainedFolder(self.folder, packed, exported, result, score, check)

    def _notes(
        self, method: Method, result: TrainingResult, before: Mapping[str, float]
    ) -> list[str]:
        slot = self.slot
        notes = [
            f"{self.folder.name} was trained on for {result.steps} steps from what quantization "
            f"had left (scales {slot.scales.name}, teacher {slot.teacher}, seed {slot.seed})."
        ]
        if method.rank(result.best) < method.rank(before):
            notes.append(
                f"Training did not help: {_changed(before, result.best)}. Lower qat.lr, train for "
                f"more epochs, or take {self.run.quantized_folder(self.recipe).name}."
            )
        return notes
