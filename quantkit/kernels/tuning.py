"""Which block sizes a product runs with: measured on the card, once for each size of problem."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from quantkit.kernels.launch import power_of_two, triton

__all__ = ["HOPPER", "SINGLE", "SMALL", "Tiles", "chosen", "suitable", "tiles_for"]


@dataclass(frozen=True)
class Tiles:
    """A program computes `outputs` x `tokens` of the result, `inputs` products at a time."""

    outputs: int
    tokens: int
    inputs: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """As a launch takes them."""
        return {
            "BLOCK_N": self.outputs,
            "BLOCK_M": self.tokens,
            "BLOCK_K": self.inputs,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# What is tried on a GPU. A warpgroup's matrix instruction takes 64 outputs at once, so that
# larger blocks have one or two warpgroups; few tokens want small blocks, to fill 132 processors:
# a single text of BERT-base's 768 outputs is 48 of the smallest.
HOPPER = (
    Tiles(16, 16, 256, 2, 4),
    Tiles(32, 16, 256, 4, 4),
    Tiles(64, 16, 128, 4, 4),
    Tiles(64, 32, 128, 4, 4),
    Tiles(64, 64, 128, 4, 4),
    Tiles(128, 32, 128, 4, 4),
    Tiles(128, 64, 128, 4, 4),
    Tiles(64, 128, 128, 4, 4),
    Tiles(128, 128, 64, 4, 4),
    Tiles(128, 128, 128, 8, 3),
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 256, 128, 8, 3),
    Tiles(256, 128, 128, 8, 3),
)
# Of float32, which the tensor cores do not take unrounded: what larger blocks hold leaves the
# registers (3.6: 64 x 64 spills 1 to 2 KB a thread, 128 x 64 19 KB).
SINGLE = (
    Tiles(16, 16, 64, 4, 2),
    Tiles(32, 32, 64, 4, 2),
    Tiles(64, 32, 64, 4, 2),
    Tiles(64, 64, 64, 8, 2),
)
MIDDLING = 3  # place in both
MOST_BLOCKS = 128  # of tokens, below each other, in tiles that are still tried
SMALL = Tiles(32, 16, 64, 4, 2)  # for the interpreter

_CHOSEN: dict[tuple[Any, ...], Tiles] = {}


def tiles_for(
    key: Sequence[Any],
    tokens: int,
    run: Callable[[Tiles], None],
    device: torch.device,
    tried: Sequence[Tiles] = HOPPER,
) -> Tiles:
    """The fastest of those `tried` for problems like this one.

    Args:
        key: all that decides besides the number of tokens: sizes, dtypes, what is fused.
        tokens: rows of the input; problems up to the same power of two share a choice.
        run: launches the kernel with some tiles.
        device: on the CPU, where nothing is to be measured, the tiles are `SMALL`.
        tried: what there is to choose from.

    While a CUDA graph is captured nothing can be timed: then it is the choice that the run
    before the capture made, or a middling one.
    """
    if device.type != "cuda":
        return SMALL
    where = (*key, power_of_two(tokens), device.index)
    if where not in _CHOSEN:
        if torch.cuda.is_current_stream_capturing():
            return tried[MIDDLING]
        _CHOSEN[where] = _fastest(run, suitable(tried, tokens))
    return _CHOSEN[where]


def suitable(tried: Sequence[Tiles], tokens: int) -> list[Tiles]:
    """Those that are not far too large for so many tokens, and not far too small.

    For 16 tokens the tiles of at most 32, for 8,192 those of at least 64.
    """
    least, most = min(tokens // MOST_BLOCKS, 64), max(32, 2 * tokens)
    return [tiles for tiles in tried if least <= tiles.tokens <= most]


def chosen() -> list[dict[str, Any]]:
    """What has been chosen so far, for a record of measurements."""
    return [{"problem": list(map(str, key)), **asdict(tiles)} for key, tiles in _CHOSEN.items()]


def _fastest(run: Callable[[Tiles], None], tried: Sequence[Tiles]) -> Tiles:
    times: dict[Tiles, float] = {}
    for tiles in tried:
        try:
            times[tiles] = triton.testing.do_bench(
                lambda tiles=tiles: run(tiles), warmup=3, rep=15, return_mode="median"
            )
        except triton.runtime.errors.OutOfResources:  # too much shared memory: not for this card
            continue
    return min(times, key=times.__getitem__)
