"""Whether a quantized model is within a budget: so many points of the main score.

Validation rows decide where they can tell so small a drop from chance; otherwise texts without
labels do, of which there are more and on which every answer counts, by a relation between
divergence and changed answers that is fitted to the models measured.

A changed answer is not a lost one: answers flip where the float model itself is in two minds, and
some become right. What a changed answer costs is more than a few hundred validation rows can tell
of models that change few, so it is a constant, `LOST_PER_CHANGE`, from models that change many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from quantkit.closeness import Closeness, FloatAnswers
from quantkit.metrics import Interval

__all__ = ["LOST_PER_CHANGE", "Budget", "fitted_factor", "resolution_of"]

# Points of the main score lost for each percent of answers that change, least squares through the
# origin over quantized models of fine-tuned 6-layer encoders, on validation rows: 0.43 of eight on
# NERGrit that change up to 3.4 %, whose chunk F1 is the strictest of scores; 0.09 of seven on EmoT
# that change up to 11 %. Half a point is on the safe side of both. With 1 instead, 25 of the 27
# units of a NERGrit model got 8 bits under a budget of 0.5 points. The relation does not hold for
# models that change more: at 9 % (4-bit inputs) NERGrit loses 2.4 points for each percent.
LOST_PER_CHANGE = 0.5


@dataclass(frozen=True)
class Budget:
    """The rule that a model has to satisfy.

    Attributes:
        max_drop: of the main score, in points.
        resolution: of the validation rows, in points; see `resolution_of`.
        factor: c in `share of changed answers = c * divergence ** power`; None where validation
            rows decide.
        power: 1/2 for answers that flip; see `closeness.divergence_power`.
        models: that c was fitted to.
    """

    max_drop: float
    resolution: float
    factor: float | None = None
    power: float = 0.5
    models: int = 0

    @property
    def by_score(self) -> bool:
        """Whether the drop on validation rows decides, and not the divergence on texts."""
        return self.factor is None

    @property
    def limit(self) -> float:
        """The largest allowed drop in points, or divergence.

        With c = 0.5 and power 1/2, 1 point allows 2 % of changed answers, and these a divergence
        of (0.02 / 0.5)² = 0.0016. A correlation or cosine (power 1) is itself what falls: 1 point
        allows 0.01 / 0.5 = 0.02. Where no measured model diverges at all (c = 0), any divergence
        is allowed.
        """
        if self.factor is None:
            return self.max_drop
        if self.factor == 0.0:
            return math.inf
        lost = LOST_PER_CHANGE if self.power == 0.5 else 1.0
        return float((self.max_drop / 100 / lost / self.factor) ** (1 / self.power))

    def measured(self, answers: FloatAnswers, model: nn.Module) -> float:
        """What the limit is for: the model's drop in points, or its divergence."""
        if self.by_score:
            return -100 * answers.change(model).value
        return answers.divergence(model)

    def accepts(self, measured: float) -> bool:
        """Whether a model with this drop or divergence is within the budget."""
        return measured <= self.limit

    def explained(self, measured: float, main: str, rows: int, texts: int) -> str:
        """Which rule decided, with its numbers.

        Args:
            measured: of the model that was found.
            main: name of the main score.
            rows: of the validation split.
            texts: that the divergence is of.
        """
        score = main.replace("_", " ")
        told = f"{self.resolution:.2f} points (half the 95 % interval of the change at low bits)"
        if self.by_score:
            return (
                f"The {score} of {rows} validation rows decided, which tell drops from {told} on "
                f"from chance: allowed {self.max_drop:.2f} points, found {measured:+.2f}."
            )
        flips = self.power == 0.5
        root = "sqrt(divergence)" if flips else "divergence"
        cost = f", of which one percent costs {LOST_PER_CHANGE} points" if flips else ""
        return (
            f"The divergence over {texts} training texts decided, because {rows} validation rows "
            f"tell drops of {score} only from {told} on from chance, and {self.max_drop:.2f} is "
            f"not more: changed answers = {self.factor:.3f} x {root}, fitted to {self.models} "
            f"models{cost}; allowed {self.limit:.2e}, found {measured:.2e}."
        )


def resolution_of(change: Interval, rows: int) -> float:
    """Half the width of a 95 % interval of a change of the score on `rows` rows, in points.

    A smaller drop than this could as well be none. -1.4 to +0.6 points have 1.0. An interval
    without any width says that no row showed a change, not that none would: then it is the rule
    of three, 3 / n (Hanley and Lippman-Hand 1983), 1.5 points of 200 rows.
    """
    half = 100 * (change.high - change.low) / 2
    return half or 100 * _at_most(rows)


def fitted_factor(models: Sequence[Closeness], power: float, rows: int) -> float:
    """The c of `1 - agreement = c * divergence ** power`: least squares through the origin.

    c = sum(x y) / sum(x²) with x = divergence ** power and y = 1 - agreement: models with
    (x, y) = (1, 1) and (2, 1) give 3 / 5. Where no model changed an answer of `rows` rows, the
    one that diverges most is taken to change as many as would hardly go unseen, 3 / n of them.
    0 where no model diverges.
    """
    x = np.array([model.divergence for model in models]) ** power
    y = 1.0 - np.array([model.agreement for model in models])
    if not x.any():
        return 0.0
    if not (y > 0).any():
        return _at_most(rows) / float(x.max())
    return max(0.0, float((x * y).sum() / (x * x).sum()))


def _at_most(rows: int) -> float:
    """The share that may change although none of `rows` rows did, with 95 % confidence."""
    return min(1.0, 3 / rows)
