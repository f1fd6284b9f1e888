"""The recipe's slots: each a frozen dataclass that is also the configuration of its part."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from quantkit.algorithms.adaround import AdaRound
from quantkit.algorithms.gptq import Gptq
from quantkit.algorithms.nearest import Nearest
from quantkit.calibrators import Calibrator, MinMax
from quantkit.config import STRICT
from quantkit.integers import LARGEST_MULTIPLIER
from quantkit.numerics import Grid, symmetric_grid

__all__ = [
    "Activations",
    "Bench",
    "Calibration",
    "Embeddings",
    "Export",
    "Rounding",
    "Weights",
]

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Named = Field(discriminator="name")
Group = Annotated[int, Field(ge=8, multiple_of=2)]


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Which training texts the ranges are taken from."""

    samples: Positive = 256
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class Weights:
    """Grid of the Linears' weights: symmetric, a scale per output channel.

    per     `group` is the two-level grid of 4 bits: groups of `group` input channels have a
            multiplier in 1..16 on the channel's scale. `tensor` is for studies of naive settings.
    range   `absmax` covers the largest weight, `mse` the range of the least squared error;
            the two-level grid always searches
    narrow  what the kernel multiplies with has 7 bits: codes -63..63, multipliers up to 9. For
            processors without VNNI under a runtime that does not set
            `session.x64quantprecision`: their products of 8-bit weights overflow in 16 bits
    """

    bits: Literal[8, 4] = 8
    per: Literal["channel", "group", "tensor"] = "channel"
    group: Group = 32
    range: Literal["absmax", "mse"] = "absmax"
    narrow: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Weights":
        if self.per == "group" and self.bits != 4:
            raise ValueError(
                "groups are for 4 bits; 8-bit weights have one scale per channel: write "
                "`per: channel`, or `bits: 4`"
            )
        return self

    def grid(self, bits: int) -> Grid:
        """The codes that a weight of so many bits may have: at 8 bits -127..127.

        Narrow ones are -63..63: two products with uint8 codes, 2 * 63 * 255, fit into 16 bits.
        """
        return symmetric_grid(7 if self.narrow and bits == 8 else bits)

    @property
    def largest_multiplier(self) -> int:
        """Of two levels: 16, or 9 where a code times its multiplier must stay in -63..63."""
        return min(LARGEST_MULTIPLIER, self.grid(8).qmax // self.grid(4).qmax)


@dataclass(frozen=True, config=STRICT)
class Activations:
    """Grid of the Linears' inputs.

    bits    16 leaves them in float: only weights are quantized. 4 is experimental.
    per     `tensor`: one static scale, calibrated. `token`: each token's own, when it runs;
            symmetric, and the calibrator has nothing to do
    rotation  `hadamard`: inputs are turned before their grid, and weights with them, so that no
            channel is much wider than the others; see `algorithms.hadamard`. An operator more
            for each input, and no gain on the encoder that was measured: compare before use
    scope   `inputs` of Linears, what integer kernels run; `all` puts every tensor of the forward
            pass on the grid (residual sums, attention scores, softmax, GELU, norms), which only
            studies want: such a model is measured, but not exported. `skip` then keeps weights
            in float, not what is computed with them
    groups  with `scope: all`: the residual sums, what is added to them, and the LayerNorms'
            outputs have so many scales, each over equally many channels
    ordered with `groups`: channels are put into groups by their range instead of in their order
    """

    bits: Literal[8, 4, 16] = 8
    per: Literal["tensor", "token"] = "tensor"
    symmetric: bool = False
    calibrator: Annotated[Calibrator, Named] = Field(default_factory=MinMax)
    rotation: Literal["hadamard"] | None = None
    scope: Literal["inputs", "all"] = "inputs"
    groups: Positive | None = None
    ordered: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Activations":
        if self.scope == "all" and (self.bits == 16 or self.per == "token"):
            raise ValueError(
                "`scope: all` has one static grid for each tensor: write `bits: 8` or `bits: 4`, "
                "and `per: tensor`"
            )
        if self.rotation is not None and (self.bits == 16 or self.scope == "all"):
            why = "16-bit inputs have no grid" if self.bits == 16 else "`scope: all` has none"
            raise ValueError(
                f"`rotation: {self.rotation}` turns the quantized inputs of Linears, and {why}: "
                f"write `rotation: null`, or `bits: 8` or `bits: 4` with `scope: inputs`"
            )
        if self.groups is not None and self.scope != "all":
            raise ValueError("`groups` needs `scope: all`: integer kernels have one scale a tensor")
        if self.ordered and self.groups is None:
            raise ValueError("`ordered` says how channels are grouped: write `groups`, e.g. 6")
        return self


@dataclass(frozen=True, config=STRICT)
class Embeddings:
    """Grid of the embedding tables: symmetric, a scale per row.

    `per: group` is the two-level grid of 4 bits, as in `weights`. `frequent` rows of a 4-bit
    word table, those of the most frequent words but at most a quarter of the table, stay at 8
    bits: a few rows serve most of a text. Position tables, which touch every token, always have
    8 bits, and type tables stay in float: they are a few KB. `trim` removes the word rows above
    the largest id the tokenizer can produce, which no text can reach; with `corpus` also
    those of tokens that no training text holds (see `trim.trim_to_corpus`).
    """

    bits: Literal[8, 4] = 8
    per: Literal["row", "group"] = "row"
    group: Group = 32
    frequent: Annotated[int, Field(ge=0)] = 2048
    trim: bool | Literal["corpus"] = True

    @model_validator(mode="after")
    def _check(self) -> "Embeddings":
        if self.per == "group" and self.bits != 4:
            raise ValueError("groups are for 4 bits: write `per: row`, or `bits: 4`")
        return self


Rounding = Nearest | Gptq | AdaRound


@dataclass(frozen=True, config=STRICT)
class Export:
    """Where the ONNX file is to run.

    target  `cpu`: ONNX Runtime on CPUs. `portable`: any runtime of the ONNX standard; quantized
            inputs have to be symmetric. `cuda`: ONNX Runtime's CUDA provider, in float16; 4-bit
            weights read float inputs, 8-bit ones symmetric or float inputs. `cuda-unpadded`: the
            same without computing padding, for batches of mixed lengths; no CUDA graphs
    """

    target: Literal["cpu", "portable", "cuda", "cuda-unpadded"] = "cpu"


@dataclass(frozen=True, config=STRICT)
class Bench:
    """Shapes and repetitions of the latency measurement."""

    batches: tuple[Positive, ...] = (1, 8)
    lengths: tuple[Positive, ...] = (32, 128)  # tokens; those over max_length are left out
    rounds: Positive = 5  # interleaved between the candidates
    repeats: Positive = 20  # timed calls per shape and round
