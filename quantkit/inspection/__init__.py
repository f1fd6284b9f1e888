"""What an ONNX file really holds, what ONNX Runtime makes of it, and what is wrong with it."""

from quantkit.inspection.file import Inspection, inspect_file

__all__ = ["Inspection", "inspect_file"]
