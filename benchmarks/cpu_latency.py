"""Speed, memory and size on CPUs: quantkit's files beside onnxruntime's, OpenVINO's and torch's.

    python benchmarks/cpu_latency.py --work FOLDER --peers .venv-peers/bin/python \
        --optimum .venv-optimum/bin/optimum-cli --tokenizer FOLDER --data FOLDER --check

BERT-base and DistilBERT shapes with random weights (see `latency_files`). Every candidate lives
in a process of its own; rounds are interleaved, and a ratio is taken within each round, so that a
drift of the machine's speed cancels out. Files are kept in --work, and finished rounds too: a run
that was interrupted goes on. --only measures some candidates, --make stops when all files are
there.

    float, int8, 4bit                    quantkit's, by `recipes/indonlu/smsa.yaml`
    int8-in-openvino                     the same integers as a portable file, which OpenVINO runs
    ort-fp32, ort-fused                  torch.onnx.export, and after the transformer optimizer
    quantize_dynamic, quantize_static, MatMulNBits    onnxruntime's own quantizers, per channel
    optimum                              optimum-cli onnxruntime quantize --avx512_vnni
    openvino-int8, openvino-int4         NNCF's, in float32 where not in integers
    openvino-int8-default                the same file as OpenVINO runs it by itself
    torch-dynamic, torch-bf16            torch's dynamic INT8 Linears, and bfloat16
    rate                                 one integer product: what the kernel reaches
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, finish
from latency_files import NUMBERS, RECIPE, Environments, Sizes, make, recipes
from latency_rounds import logits_off, repeats_of, round_of
from latency_tables import bars_of, family_result, markdown, print_family
from latency_texts import write_texts
from latency_worker import program

from quantkit.files import read_json, write_json
from quantkit.measure import Worker, environment, open_worker
from quantkit.recipe import recipe_hash
from quantkit.runtime import available_threads

SHAPES = ((1, 16), (1, 64), (1, 128), (8, 128), (32, 64))
FAMILIES = {"bert-base": Sizes(), "distilbert": Sizes(family="distilbert", layers=6)}
TEXT_BATCHES = (1, 32)
ROUNDS, LEAST_ROUNDS = 9, 7


@dataclass(frozen=True)
class Candidate:
    """How a model is opened."""

    model: str  # of `latency_files.make`
    engine: str = "onnx"
    file: str = "model.onnx"
    of_peers: bool = False  # its engine is in the peers' environment only


CANDIDATES = {
    "float": Candidate("float"),
    "int8": Candidate("int8"),
    "int8-in-openvino": Candidate("int8-portable", "openvino-f32", "model.onnx", of_peers=True),
    "4bit": Candidate("4bit"),
    "ort-fp32": Candidate("ort-fp32"),
    "ort-fused": Candidate("ort-fused"),
    "quantize_dynamic": Candidate("quantize_dynamic"),
    "quantize_static": Candidate("quantize_static"),
    "MatMulNBits": Candidate("MatMulNBits"),
    "optimum": Candidate("optimum"),
    "openvino-int8": Candidate("openvino-int8", "openvino-f32", "model.xml", True),
    "openvino-int8-default": Candidate("openvino-int8", "openvino-default", "model.xml", True),
    "openvino-int4": Candidate("openvino-int4", "openvino-f32", "model.xml", True),
    "torch-dynamic": Candidate("checkpoint", "torch-dynamic", ""),
    "torch-bf16": Candidate("checkpoint", "torch-bf16", ""),
    "rate": Candidate("rate"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files, measure them family by family, and report."""
    options = _options(arguments)
    names = _selected(options)
    texts = write_texts(options.work, options.data, options.tokenizer, options.texts)
    programs = Environments(options.peers, options.optimum)
    families: dict[str, Any] = {}
    for family in options.families:
        sizes, folder = FAMILIES[family].changed(options), options.work / family
        for name in names:
            print(f"{family}: {name}", flush=True)
            make(CANDIDATES[name].model, sizes, folder, programs)
        if options.make:
            continue
        measured = _measured(names, sizes, folder, texts, options)
        families[family] = family_result(measured, sizes)
        print_family(family, families[family])
    if options.make:
        return 0
    results = {
        "models": {name: asdict(FAMILIES[name].changed(options)) for name in families},
        "recipe": {
            "name": RECIPE.name,
            "hashes": {bits: recipe_hash(recipe) for bits, recipe in recipes().items()},
        },
        "threads": options.threads,
        "rounds": options.rounds,
        "texts": {"source": texts.stem, "tokens": _tokens(texts)},
        "families": families,
        "table": markdown(families),
    }
    bars = bars_of(families)
    return finish(
        "cpu_latency",
        bars,
        results,
        check=options.check,
        folder=options.results,
        threads=options.threads,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="quantkit's files on CPUs beside other tools'.")
    add = parser.add_argument
    add("--work", type=Path, required=True, metavar="DIR", help="keeps files and finished rounds")
    add("--peers", type=Path, metavar="PYTHON", help="of the environment with openvino and nncf")
    add("--optimum", type=Path, metavar="PROGRAM", help="optimum-cli")
    add("--tokenizer", type=Path, metavar="DIR", help="IndoBERT's; for real texts")
    add("--data", type=Path, metavar="DIR", help="IndoNLU's files; without it lengths are made")
    add("--texts", type=_positive, default=500, help="of SmSA's test split (%(default)s)")
    add("--only", nargs="+", choices=CANDIDATES, metavar="NAME", help="measure these alone")
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--make", action="store_true", help="stop when all files are made")
    add("--rounds", type=_positive, default=ROUNDS, help="interleaved rounds (%(default)s)")
    add("--threads", type=_positive, default=available_threads(), help="per candidate")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cpu_latency.json")
    for name in NUMBERS:
        add(f"--{name}", type=_positive, help="of both models; default: IndoBERT-base's")
    options = parser.parse_args(arguments)
    if options.check and options.rounds < LEAST_ROUNDS:
        parser.error(f"--check needs at least {LEAST_ROUNDS} rounds, not {options.rounds}")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _selected(options: argparse.Namespace) -> list[str]:
    """The candidates to measure: those asked for, or those whose environments are given."""
    if options.only:
        return list(options.only)
    left_out = set() if options.optimum else {"optimum"}
    if options.peers is None:
        left_out |= {name for name, candidate in CANDIDATES.items() if candidate.of_peers}
    return [name for name in CANDIDATES if name not in left_out]


def _tokens(texts: Path) -> int:
    with np.load(texts) as rows:
        return len(rows["input_ids"])


# --- measuring -----------------------------------------------------------------------


def _measured(
    names: Sequence[str], sizes: Sizes, folder: Path, texts: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """All rounds of a family; those that an interrupted run finished are not repeated."""
    state = folder / "rounds.json"
    key = {
        "model": asdict(sizes),
        "candidates": list(names),
        "environment": environment(options.threads),
        "files": {name: _bytes(name, folder) for name in names},
        "texts": texts.stem,
        "shapes": [f"{batch}x{length}" for batch, length in SHAPES],
    }
    found = read_json(state) if state.is_file() else {}
    rounds: list[dict[str, Any]] = found["rounds"] if found.get("key") == key else []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_opened(name, folder, options)) for name in names}
        for worker in workers.values():
            worker.ask(do="time", batch=1, length=128, rows=sizes.vocab, repeats=1)
        single = {name: worker.ask(do="about")["peak"] for name, worker in workers.items()}
        logits = logits_off(workers, sizes.vocab)
        repeats = repeats_of(workers, sizes.vocab, SHAPES)
        for index in range(len(rounds), options.rounds):
            rounds.append(
                {
                    name: times | _texts(workers[name], name, texts)
                    for name, times in round_of(index, workers, sizes.vocab, repeats).items()
                }
            )
            write_json(state, {"key": key, "rounds": rounds})
            print(f"round {index + 1} of {options.rounds}", flush=True)
        about = {
            name: {
                "open_seconds": worker.seconds,
                "single_peak": single[name],
                **worker.ask(do="about"),
            }
            for name, worker in workers.items()
        }
    with np.load(texts) as rows:
        count = len(rows["offsets"]) - 1
    return {
        "rounds": rounds,
        "about": about,
        "bytes": key["files"],
        "logits": logits,
        "texts": count,
    }


def _bytes(name: str, folder: Path) -> int:
    candidate = CANDIDATES[name]
    place = folder / candidate.model
    if not candidate.file:
        return (place / "model.safetensors").stat().st_size
    files = [place / candidate.file, (place / candidate.file).with_suffix(".bin")]
    return sum(each.stat().st_size for each in files if each.is_file())


@contextmanager
def _opened(name: str, folder: Path, options: argparse.Namespace) -> Iterator[Worker]:
    candidate = CANDIDATES[name]
    python = str(options.peers) if candidate.of_peers and options.peers else sys.executable
    path = folder / candidate.model / candidate.file
    with open_worker(
        name, path, options.threads, program(candidate.engine), python=python
    ) as worker:
        yield worker


def _texts(worker: Worker, name: str, texts: Path) -> dict[str, float]:
    """Seconds for all texts, by batch."""
    if name == "rate":
        return {}
    asked = {batch: worker.ask(do="texts", file=str(texts), batch=batch) for batch in TEXT_BATCHES}
    return {f"texts {batch}": round(answer["seconds"], 5) for batch, answer in asked.items()}


if __name__ == "__main__":
    sys.exit(main())
