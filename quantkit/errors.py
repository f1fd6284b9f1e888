"""Every error that quantkit raises on purpose.

    QuantkitError                    exit status 2, no traceback on the command line
    ├── RecipeError                  a recipe or an option cannot be used as written
    ├── DataError                    a dataset is missing, misshapen or wrongly labelled
    ├── CheckpointError              a model folder is missing, broken or unsupported
    ├── OutputExistsError            a result would overwrite an earlier one
    ├── DependencyError              an optional package is missing or installed twice
    ├── ParityError                  an exported file does not compute the model's answers
    └── MeasurementError             a candidate's own process failed

Each message says what is wrong, where, what was found, and what to do next.
"""

__all__ = [
    "CheckpointError",
    "DataError",
    "DependencyError",
    "MeasurementError",
    "OutputExistsError",
    "ParityError",
    "QuantkitError",
    "RecipeError",
]


class QuantkitError(Exception):
    """Base of all errors a user can cause and mend."""


class RecipeError(QuantkitError):
    """A recipe or a command-line option cannot be used as written."""


class DataError(QuantkitError):
    """A dataset is missing, misshapen or wrongly labelled."""


class CheckpointError(QuantkitError):
    """A model folder is missing, broken or of a kind that is not supported."""


class OutputExistsError(QuantkitError):
    """A result would overwrite an earlier one."""


class DependencyError(QuantkitError):
    """An optional package is missing, or two that exclude each other are installed."""


class ParityError(QuantkitError):
    """An exported file does not compute the answers of the model it was made from."""


class MeasurementError(QuantkitError):
    """A process that measured one candidate failed."""
