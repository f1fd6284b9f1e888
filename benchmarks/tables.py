"""A 4-bit embedding table in ONNX Runtime: three ways to read it, each in a process of its own.

    python benchmarks/tables.py          # writes benchmarks/results/tables.json

The table has IndoBERT-base's size, 30,521 x 768, two levels with groups of 32, and 2,048 rows of
8 bits; its values are random. Times are processor time of one thread; memory is the process's
peak minus what it held after its imports.

folded      INT4 codes that are made int8 when the file is opened
operator    GatherBlockQuantized on INT4 codes, with float scales of every block
bytes       two codes a byte, looked up first and taken apart then: what quantkit writes
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from quantkit.exporter.cuda import CudaEmitter
from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.initializers import Initializers, array
from quantkit.exporter.tables import TableWriter
from quantkit.files import write_json
from quantkit.integers import Integers
from quantkit.modules import QuantEmbedding

ROWS, WIDTH, GROUP, FREQUENT = 30_521, 768, 32, 2_048
ROUNDS, REPEATS = 5, 50
RESULT = Path(__file__).parent / "results" / "tables.json"
KINDS = ("folded", "operator", "bytes")
INT8, INT32 = onnx.TensorProto.INT8, onnx.TensorProto.INT32


def main() -> None:
    """Make the files, measure each in turns, and write the medians."""
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in KINDS}
        table = random_table()
        for kind, path in files.items():
            onnx.save_model(graph_of(kind, table), path)
        rounds = [{kind: worker(path) for kind, path in files.items()} for _ in range(ROUNDS)]
        result = {
            kind: {
                "file_bytes": path.stat().st_size,
                **{
                    name: statistics.median(each[kind][name] for each in rounds)
                    for name in rounds[0][kind]
                },
            }
            for kind, path in files.items()
        }
    write_json(RESULT, {"rounds": ROUNDS, "repeats": REPEATS, "tables": result})
    print(RESULT.read_text(encoding="utf-8"))


def random_table() -> QuantEmbedding:
    """Codes, multipliers, scales and frequent rows, seeded."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-7, 8, (ROWS, WIDTH), generator=generator, dtype=torch.int8)
    multipliers = torch.randint(1, 19, (ROWS, WIDTH // GROUP), generator=generator).to(torch.int8)
    scale = torch.rand((ROWS, 1), generator=generator) * 1e-3
    rows = torch.randperm(ROWS, generator=generator)[:FREQUENT].sort().values
    exact = torch.randint(-127, 128, (FREQUENT, WIDTH), generator=generator).to(torch.int8)
    return QuantEmbedding(Integers.of(codes, scale, 4, multipliers), rows, exact)


def graph_of(kind: str, table: QuantEmbedding) -> onnx.ModelProto:
    """A file that looks rows up and gives them as float32."""
    graph = GraphWriter()
    if kind == "bytes":
        rows = TableWriter(graph, Initializers(graph)).rows("table", table, "ids")
    elif kind == "operator":
        model = torch.nn.ModuleDict({"table": table})
        rows = CudaEmitter(graph, model, single=True).embed("table", "ids")
    else:
        rows = folded(graph, table)
    graph.add("Identity", rows, name="rows")
    return graph.finish({"ids": ("batch", "length")}, "rows", ("batch", "length", WIDTH), {})


def folded(graph: GraphWriter, table: QuantEmbedding) -> str:
    """The whole int8 table, made of constants when the file is opened."""
    if table.multipliers is None or table.frequent_rows is None or table.frequent_codes is None:
        raise ValueError("a table of two levels with frequent rows")
    nibbles = graph.nibbles("codes", array(table.integers.codes))
    grouped = graph.constant("grouped", np.array([ROWS, WIDTH // GROUP, GROUP]))
    codes = graph.add("Reshape", graph.add("Cast", nibbles, to=INT32), grouped)
    factors = graph.constant("multipliers", array(table.multipliers)[:, :, None])
    product = graph.add("Mul", codes, graph.add("Cast", factors, to=INT32))
    whole = graph.add("Reshape", product, graph.constant("whole", np.array([ROWS, WIDTH])))
    places = graph.constant("places", array(table.frequent_rows)[:, None])
    exact = graph.constant("exact", array(table.frequent_codes))
    wide = graph.add("ScatterND", graph.add("Cast", whole, to=INT8), places, exact)
    found = graph.add("Cast", graph.add("Gather", wide, "ids"), to=onnx.TensorProto.FLOAT)
    scale = graph.add("Gather", graph.constant("scale", array(table.scale)), "ids")
    return graph.add("Mul", found, scale)


def worker(path: Path) -> dict[str, float]:
    """Memory and times of one file, in a fresh process."""
    program = Path(__file__).with_name("table_worker.py")
    command = [sys.executable, str(program), str(path), str(ROWS), str(REPEATS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
