"""IndoNLU's datasets in their original files (Wilie et al., AACL-IJCNLP 2020).

The files come from github.com/IndoNLP/indonlu, folder `dataset/`, one folder per task.
A further classification task of the same layout is one more `_Spec`.
"""

from dataclasses import dataclass
from pathlib import Path

from quantkit.data.schema import SPLITS, TaskData, build_task
from quantkit.errors import DataError

__all__ = ["HOW_TO_GET", "load_smsa"]

HOW_TO_GET = "Get it from github.com/IndoNLP/indonlu, folder dataset/"


@dataclass(frozen=True)
class _Spec:
    """Where a task's files are and what they mean."""

    name: str
    folder: str
    labels: tuple[str, ...]  # class ids in the order of IndoNLU's own loader
    files: tuple[str, str, str] = (  # in the order of SPLITS
        "train_preprocess.tsv",
        "valid_preprocess.tsv",
        "test_preprocess.tsv",
    )


_SMSA = _Spec(
    name="smsa",
    folder="smsa_doc-sentiment-prosa",
    labels=("positive", "neutral", "negative"),
)


def load_smsa(folder: Path) -> TaskData:
    """Read SmSA: the sentiment of 11,000 / 1,260 / 500 Indonesian comments and reviews.

    `folder` is the task's folder, the `indonlu` folder that holds it, the folder above
    `indonlu`, or a checkout of the repository.

    Raises:
        DataError: a file is missing, not UTF-8, or has a line that is not text TAB label.
    """
    return _load(_SMSA, folder)


def _load(spec: _Spec, folder: Path) -> TaskData:
    home = _find(spec, folder)
    files = dict(zip(SPLITS, (home / file for file in spec.files), strict=True))
    rows = {split: _read_tsv(file) for split, file in files.items()}
    sources = {split: str(file) for split, file in files.items()}
    return build_task(spec.name, spec.labels, rows, sources)


def _find(spec: _Spec, folder: Path) -> Path:
    """The first of the possible places that holds any of the task's files."""
    places = (
        folder,
        folder / spec.folder,
        folder / "indonlu" / spec.folder,
        folder / "dataset" / spec.folder,
    )
    for place in places:
        if any((place / file).is_file() for file in spec.files):
            return place
    looked = "".join(f"\n  {place}" for place in places)
    raise DataError(
        f"{spec.name}: no {spec.files[0]} was found. Looked in:{looked}\n"
        f"{HOW_TO_GET}{spec.folder}, and pass its folder with --data FOLDER."
    )


def _read_tsv(file: Path) -> list[tuple[str, str]]:
    """The (text, label) rows; there is no header and no quoting, so a quote is text."""
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {HOW_TO_GET}{file.parent.name}.") from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is not UTF-8 ({problem}). Get the original file.") from None
    # Not splitlines(): it also breaks at characters that may stand inside a text (U+2028).
    lines = content.removesuffix("\n").split("\n") if content else []
    return [_columns(line.removesuffix("\r"), file, at) for at, line in enumerate(lines, start=1)]


def _columns(line: str, file: Path, at: int) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise DataError(
            f"{file}:{at}: expected 2 columns (text TAB label), found {len(parts)}: {line[:60]!r}."
        )
    return parts[0], parts[1]
