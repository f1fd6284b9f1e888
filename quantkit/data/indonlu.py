"""IndoNLU's twelve datasets in their original files (Wilie et al., AACL-IJCNLP 2020).

The files come from github.com/IndoNLP/indonlu, folder `dataset/`, one folder per task. The
order of the labels is that of IndoNLU's own loader, and it is not taken from the files: BaPOS
has a label in validation and test that train lacks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantkit.data.readers import find_folder, parse_list, read_csv, read_lines, read_sentences
from quantkit.data.schema import SPLITS, Example, TaskData, build_task
from quantkit.errors import DataError
from quantkit.heads import Head

__all__ = ["HOW_TO_GET", "TASKS", "Spec", "load_indonlu"]

HOW_TO_GET = "Get it from github.com/IndoNLP/indonlu, folder dataset/"


@dataclass(frozen=True)
class Spec:
    """Where a task's files are and what they mean."""

    folder: str
    suffix: str
    head: Head
    read: Callable[[Path], Iterable[Example]]

    @property
    def files(self) -> tuple[str, ...]:
        """In the order of SPLITS."""
        return tuple(f"{part}_preprocess{self.suffix}" for part in ("train", "valid", "test"))


def _read_smsa(file: Path) -> Iterator[Example]:
    """Lines of text TAB label; there is no header and no quoting, so a quote is text."""
    for at, line in read_lines(file):
        parts = line.split("\t")
        if len(parts) != 2:
            raise DataError(
                f"{file}:{at}: expected 2 columns (text TAB label), found {len(parts)}: "
                f"{line[:60]!r}."
            )
        yield Example(f"{file}:{at}", parts[0], parts[1])


def _read_emot(file: Path) -> Iterator[Example]:
    for where, row in read_csv(file, ["label", "tweet"]):
        yield Example(where, row["tweet"], row["label"])


def _read_wrete(file: Path) -> Iterator[Example]:
    for where, row in read_csv(file, ["sent_A", "sent_B", "label"]):
        yield Example(where, row["sent_A"], row["label"], row["sent_B"])


def _read_facqa(file: Path) -> Iterator[Example]:
    columns = ["question", "passage", "seq_label"]
    for where, row in read_csv(file, columns):
        question, passage, labels = (parse_list(row[name], name, where) for name in columns)
        yield Example(where, passage, labels, question)


def _read_aspects(file: Path, text: str, aspects: tuple[str, ...]) -> Iterator[Example]:
    for where, row in read_csv(file, [text, *aspects]):
        yield Example(where, row[text], [row[aspect] for aspect in aspects])


def _aspects(folder: str, text: str, labels: str, aspects: str) -> Spec:
    head = Head("aspects", tuple(labels.split()), tuple(aspects.split()))
    return Spec(folder, ".csv", head, partial(_read_aspects, text=text, aspects=head.aspects))


def _sentences(folder: str, labels: str) -> Spec:
    head = Head("words", tuple(labels.split()))
    return Spec(folder, ".txt", head, partial(read_sentences, labels=head.labels))


TASKS = {
    "emot": Spec(
        "emot_emotion-twitter",
        ".csv",
        Head("classification", ("sadness", "anger", "love", "fear", "happy")),
        _read_emot,
    ),
    "smsa": Spec(
        "smsa_doc-sentiment-prosa",
        ".tsv",
        Head("classification", ("positive", "neutral", "negative")),
        _read_smsa,
    ),
    "casa": _aspects(
        "casa_absa-prosa",
        "sentence",
        "negative neutral positive",
        "fuel machine others part price service",
    ),
    "hoasa": _aspects(
        "hoasa_absa-airy",
        "review",
        "neg neut pos neg_pos",
        "ac air_panas bau general kebersihan linen service sunrise_meal tv wifi",
    ),
    "wrete": Spec(
        "wrete_entailment-ui",
        ".csv",
        Head("classification", ("NotEntail", "Entail_or_Paraphrase")),
        _read_wrete,
    ),
    "posp": _sentences(
        "posp_pos-prosa",
        "B-PPO B-KUA B-ADV B-PRN B-VBI B-PAR B-VBP B-NNP B-UNS B-VBT B-VBL B-NNO B-ADJ B-PRR "
        "B-PRK B-CCN B-$$$ B-ADK B-ART B-CSN B-NUM B-SYM B-INT B-NEG B-PRI B-VBE",
    ),
    "bapos": _sentences(
        "bapos_pos-idn",
        "B-PR B-CD I-PR B-SYM B-JJ B-DT I-UH I-NND B-SC I-WH I-IN I-NNP I-VB B-IN B-NND I-CD "
        "I-JJ I-X B-OD B-RP B-RB B-NNP I-RB I-Z B-CC B-NEG B-VB B-NN B-MD B-UH I-NN B-PRP I-SC "
        "B-Z I-PRP I-OD I-SYM B-WH B-FW I-CC B-X",
    ),
    "terma": _sentences(
        "terma_term-extraction-airy", "I-SENTIMENT O I-ASPECT B-SENTIMENT B-ASPECT"
    ),
    "keps": _sentences("keps_keyword-extraction-prosa", "O B I"),
    "nergrit": _sentences(
        "nergrit_ner-grit",
        "I-PERSON B-ORGANISATION I-ORGANISATION B-PLACE I-PLACE O B-PERSON",
    ),
    "nerp": _sentences(
        "nerp_ner-prosa",
        "I-PPL B-EVT B-PLC I-IND B-IND B-FNB I-EVT B-PPL I-PLC O I-FNB",
    ),
    "facqa": Spec("facqa_qa-factoid-itb", ".csv", Head("words", ("O", "B", "I")), _read_facqa),
}


def load_indonlu(name: str, folder: Path) -> TaskData:
    """Read one of `TASKS`.

    `folder` is the task's folder, the `indonlu` folder that holds it, the folder above
    `indonlu`, or a checkout of the repository.

    Raises:
        DataError: a file is missing, not UTF-8, or has a row that is not as it should be.
    """
    spec = TASKS[name]
    above = (folder, folder / "indonlu", folder / "dataset")
    places = [folder, *(place / spec.folder for place in above)]
    home = find_folder(name, places, spec.files, f"{HOW_TO_GET}{spec.folder}")
    files = dict(zip(SPLITS, (home / file for file in spec.files), strict=True))
    rows = {split: list(spec.read(file)) for split, file in files.items()}
    notes: tuple[str, ...] = ()
    if name == "terma":
        rows["train"], notes = _without_validation(rows["train"], rows["validation"])
    sources = {split: str(file) for split, file in files.items()}
    return build_task(name, spec.head, rows, sources, notes)


def _without_validation(
    train: list[Example], validation: list[Example]
) -> tuple[list[Example], tuple[str, ...]]:
    """TermA's train split holds all of its validation sentences, with their labels."""
    seen = {tuple(row.first) for row in validation}
    kept = [row for row in train if tuple(row.first) not in seen]
    note = (
        f"TermA: {len(train) - len(kept)} sentences of train that are in validation too were "
        f"left out of train."
    )
    return kept, (note,)
