"""Where results lie: one folder per run, and how a run is found again.

runs/NAME/run.json     recipe, data folder, training result; written last by fine-tuning
runs/NAME/training/    state of an unfinished fine-tuning; gone when it is complete
runs/NAME/float/       the fine-tuned checkpoint, and its onnx/model.onnx
runs/NAME/w8a8/        the packed checkpoint, and its onnx/model_quantized.onnx
runs/NAME/w8a8-qat/    the same, trained further; training.json says how
runs/NAME/float-longer/  the float model trained on for as many steps, and its training.json
runs/NAME/training-w8a8-qat/  state of an unfinished training; gone when it is complete
runs/NAME/report.json  the measurements, and report.md made from them
runs/NAME/sensitivity-w4a8.json  what each part loses at these bits
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, OutputExistsError
from quantkit.files import read_json, write_json
from quantkit.recipe import Recipe, parse_recipe

__all__ = ["TRAINING", "Run", "find_run", "latest_run"]

TRAINING = "training.json"  # in the folder of a model that was trained from the run's float one


@dataclass(frozen=True)
class Run:
    """One run's folder; it need not exist yet."""

    folder: Path

    @property
    def float_folder(self) -> Path:
        """The fine-tuned checkpoint."""
        return self.folder / "float"

    @property
    def training_folder(self) -> Path:
        """The state that an interrupted fine-tuning resumes from."""
        return self.folder / "training"

    def quantized_folder(self, recipe: Recipe) -> Path:
        """The packed checkpoint of a recipe, named by its bits and, unless `cpu`, its target."""
        target = "" if recipe.export.target == "cpu" else f"-{recipe.export.target}"
        return self.folder / f"w{recipe.weights.bits}a{recipe.activations.bits}{target}"

    def qat_folder(self, recipe: Recipe) -> Path:
        """The packed checkpoint that was trained further from a recipe's."""
        return self.folder / f"{self.quantized_folder(recipe).name}-qat"

    @property
    def longer_folder(self) -> Path:
        """The float model trained on for as many steps: what QAT is to be compared with."""
        return self.folder / "float-longer"

    def state_folder(self, folder: Path) -> Path:
        """The state that an interrupted training of one of the folders resumes from."""
        return self.folder / f"training-{folder.name}"

    def quantized_folders(self) -> list[Path]:
        """All packed checkpoints, those with more bits first, and a trained one behind its own."""
        found = sorted(self.folder.glob("w*a*"))
        return sorted(found, key=lambda folder: folder.name.split("-")[0], reverse=True)

    @property
    def complete(self) -> bool:
        """Whether fine-tuning has finished."""
        return (self.folder / "run.json").is_file()

    def save(self, recipe: Recipe, data: Path | None, training: dict[str, Any]) -> None:
        """Record a finished fine-tuning."""
        write_json(
            self.folder / "run.json",
            {
                "recipe": asdict(recipe),
                "data": None if data is None else str(data.resolve()),
                "training": training,
            },
        )

    def recipe(self) -> Recipe:
        """The recipe the run was fine-tuned with."""
        return parse_recipe(self._record()["recipe"], str(self.folder / "run.json"))

    def data(self) -> Path | None:
        """The folder its dataset was read from."""
        value = self._record()["data"]
        return None if value is None else Path(value)

    def training(self) -> dict[str, Any]:
        """Steps, seconds, best score and history of its fine-tuning."""
        value: dict[str, Any] = self._record()["training"]
        return value

    def training_of(self, folder: Path) -> dict[str, Any]:
        """The training that ended in one of the folders: its own, or else the fine-tuning."""
        file = folder / TRAINING
        return read_json(file) if file.is_file() else self.training()

    def remove_derived(self) -> None:
        """Remove what was made from an earlier float model: it would no longer belong to it."""
        work = (*self.folder.glob(".w*.layers"), *self.folder.glob("sensitivity-*.layers"))
        longer = (*self.folder.glob("float-longer"), *self.folder.glob("training-*"))
        for folder in (*self.quantized_folders(), *work, *longer):
            shutil.rmtree(folder)
        for file in self.folder.glob("sensitivity-*.json"):
            file.unlink()
        for name in ("report.json", "report.md"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def interrupted(self) -> bool:
        """Whether a fine-tuning was begun that has not finished."""
        return self.training_folder.is_dir()

    def refuse_if_there(self, *, resume: bool) -> None:
        """Refuse to write over an earlier run; `resume` allows an interrupted one.

        Raises:
            OutputExistsError: the run is complete, or was interrupted.
        """
        if resume and self.interrupted:
            return
        if self.complete:
            raise OutputExistsError(
                f"The run {self.folder} exists already. Pass --overwrite to replace it, or "
                f"choose another name with --name."
            )
        if self.interrupted:
            raise OutputExistsError(
                f"The run {self.folder} was interrupted. Pass --resume to continue it, or "
                f"--overwrite to start again."
            )

    def _record(self) -> dict[str, Any]:
        if not self.complete:
            raise CheckpointError(
                f"{self.folder} is not a finished run: it holds no run.json. Make one with: "
                f"quantkit finetune RECIPE --name {self.folder.name}"
            )
        return read_json(self.folder / "run.json")


def find_run(name: str, runs: Path) -> Run:
    """A run by its name under `runs`, or by its folder.

    Raises:
        CheckpointError: there is none; the message lists those there are.
    """
    for folder in (runs / name, Path(name)):
        if (folder / "run.json").is_file():
            return Run(folder)
    known = ", ".join(sorted(path.parent.name for path in runs.glob("*/run.json"))) or "none"
    raise CheckpointError(
        f"{name}: no such run in {runs} (there: {known}). Make one with: quantkit finetune RECIPE"
    )


def latest_run(runs: Path) -> Run | None:
    """The run whose fine-tuning finished last."""
    records = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return Run(records[-1].parent) if records else None
