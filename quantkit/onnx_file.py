"""Which file of an exported folder is meant, and what it says of itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from quantkit.errors import CheckpointError, RecipeError
from quantkit.files import read_json
from quantkit.heads import HEAD_KEY, Head

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "CUDA",
    "DATA_SUFFIX",
    "FOLDERS",
    "INPUTS",
    "TARGETS",
    "Interface",
    "ModelFile",
    "Target",
    "exported_targets",
    "file_bytes",
    "find_onnx",
    "folder_of",
    "known_target",
    "output_name",
    "read_tokenizer",
    "target_of",
]

Target = Literal["portable", "cpu", "cuda", "cuda-unpadded"]  # where a file is to run
CUDA: frozenset[Target] = frozenset({"cuda", "cuda-unpadded"})  # those in half precision

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # a file takes some of these

# Where a target's files lie in a folder: `cpu` has the place that other tools look at.
FOLDERS: Mapping[Target, str] = {
    "cpu": "onnx",
    "portable": "onnx/portable",
    "cuda": "onnx/cuda",
    "cuda-unpadded": "onnx/cuda-unpadded",
}
# In the order of preference: what a folder with several files is opened for.
NAMES = ("model_quantized.onnx", "model_q4.onnx", "model_fp16.onnx", "model.onnx")
# The targets whose files run on a device in ONNX Runtime, the best first, and in OpenVINO.
TARGETS: Mapping[str, tuple[Target, ...]] = {
    "cpu": ("cpu", "portable"),
    "cuda": ("cuda", "cuda-unpadded", "portable"),
    "openvino": ("portable",),
}

DATA_SUFFIX = "_data"  # of a file with tensors that a file of 2 GB has no room for

MAX_LENGTH = 512  # tokens, of a file that names no limit


@dataclass(frozen=True)
class Interface:
    """What an open file says of itself, whichever runtime has opened it."""

    properties: Mapping[str, str]  # its metadata
    inputs: tuple[str, ...]
    outputs: Mapping[str, Sequence[object]]  # shapes; what is no int is no fixed size

    @classmethod
    def of(cls, inference: "onnxruntime.InferenceSession") -> "Interface":
        """Of a session of ONNX Runtime."""
        return cls(
            inference.get_modelmeta().custom_metadata_map,
            tuple(value.name for value in inference.get_inputs()),
            {value.name: value.shape for value in inference.get_outputs()},
        )


@dataclass(frozen=True)
class ModelFile:
    """What an ONNX file and the config.json beside it say."""

    head: Head
    max_length: int  # tokens, special ones included
    padding: int  # token id
    target: str | None  # the device it was exported for, where it names one

    @classmethod
    def read(cls, interface: Interface, tokenizer: Tokenizer, path: Path) -> "ModelFile":
        """Read the metadata; what an older or foreign file leaves out comes from config.json.

        Raises:
            CheckpointError: neither says what the model answers, or the file has other
                inputs or outputs than that needs.
        """
        properties = interface.properties
        source = folder_of(path) / "config.json"
        config = read_json(source) if source.is_file() else {}
        head = _head(properties, config, path)
        _check(interface, head, path)
        limit = properties.get("quantkit.max_length")
        known = min(MAX_LENGTH, config.get("max_position_embeddings", MAX_LENGTH))
        return cls(
            head,
            known if limit is None else int(limit),
            _padding(properties, tokenizer, config),
            properties.get("quantkit.target"),
        )


def find_onnx(path: Path, device: str = "cpu") -> Path:
    """The ONNX file meant by `path`: itself, or the folder's best one for `device`.

    Before a float file comes a quantized one, before a portable one that of the device; `device`
    may be any key of `TARGETS`.

    Raises:
        CheckpointError: there is none for the device.
    """
    if path.is_file():
        return path
    for target in TARGETS[device]:
        for name in NAMES:
            if (file := path / FOLDERS[target] / name).is_file():
                return file
    others = exported_targets(path)
    found = f"one for {others[0]} only" if others else f"none in {path / 'onnx'}"
    raise CheckpointError(
        f"{path} holds no exported model for {device}, {found}. "
        f"Make one with: quantkit export {path} --target {TARGETS[device][0]}"
    )


def exported_targets(folder: Path) -> list[Target]:
    """The targets that a folder holds files for."""
    return [target for target in FOLDERS if any((folder / FOLDERS[target]).glob("*.onnx"))]


def known_target(name: str) -> Target:
    """The target of that name.

    Raises:
        RecipeError: there is none.
    """
    for target in FOLDERS:
        if target == name:
            return target
    raise RecipeError(f"The target {name!r} is unknown; quantkit supports {', '.join(FOLDERS)}.")


def target_of(path: Path) -> Target:
    """The target that the place of an exported file stands for."""
    places: dict[str, Target] = {place: target for target, place in FOLDERS.items()}
    return places.get(f"onnx/{path.parent.name}", "cpu")


def file_bytes(path: Path) -> int:
    """Bytes of an ONNX file, those of its tensors included where they lie beside it."""
    return path.stat().st_size + sum(other.stat().st_size for other in _data_of(path))


def _data_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}{DATA_SUFFIX}*"))


def folder_of(path: Path) -> Path:
    """The folder with tokenizer.json that an ONNX file belongs to: its own, or one above."""
    above = (path.parent, path.parent.parent, path.parent.parent.parent)
    return next((each for each in above if (each / "tokenizer.json").is_file()), above[1])


def output_name(head: Head) -> str:
    """The output of a file that `head` decodes."""
    return "last_hidden_state" if head.kind == "features" else "logits"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that belongs to an ONNX file.

    Raises:
        CheckpointError: there is none.
    """
    source = folder_of(path) / "tokenizer.json"
    if not source.is_file():
        raise CheckpointError(f"{source.parent} holds no tokenizer.json. Export the model again.")
    tokenizer = Tokenizer.from_file(str(source))
    tokenizer.no_padding()
    return tokenizer


def _head(properties: Mapping[str, str], config: Mapping[str, Any], path: Path) -> Head:
    if "quantkit.head" in properties:
        return Head.from_json(json.loads(properties["quantkit.head"]))
    if "quantkit.labels" in properties:
        return Head("classification", tuple(properties["quantkit.labels"].split("\n")))
    if HEAD_KEY in config:
        return Head.from_json(config[HEAD_KEY])
    names = config.get("id2label")
    if not names:
        raise CheckpointError(
            f"{path} does not say what it answers, and neither does an id2label in "
            f"{folder_of(path) / 'config.json'}. Add that file, or export the model again."
        )
    return Head("classification", tuple(names[key] for key in sorted(names, key=int)))


def _padding(properties: Mapping[str, str], tokenizer: Tokenizer, config: Mapping[str, Any]) -> int:
    candidates = (
        properties.get("quantkit.pad_token_id"),
        tokenizer.token_to_id("[PAD]"),
        config.get("pad_token_id"),
    )
    return next((int(value) for value in candidates if value is not None), 0)


def _check(interface: Interface, head: Head, path: Path) -> None:
    """Refuse a file whose inputs or outputs do not fit."""
    strange = [name for name in interface.inputs if name not in INPUTS]
    if strange:
        raise CheckpointError(
            f"{path} wants the inputs {', '.join(strange)}; a session has {', '.join(INPUTS)}. "
            f"Export the model with these alone."
        )
    shapes = interface.outputs
    wanted = output_name(head)
    if wanted not in shapes:
        raise CheckpointError(
            f"{path} has no output {wanted!r}, as {head.kind} needs; it has "
            f"{', '.join(shapes)}. Export the model again."
        )
    width = [None, *shapes[wanted]][-1]
    if head.outputs and isinstance(width, int) and width != head.outputs:
        raise CheckpointError(
            f"{path} computes {width} logits, and there are names for {head.outputs}: "
            f"{', '.join(head.output_names)}. Correct id2label in config.json, or export again."
        )
