"""From a model in memory to a verified ONNX folder."""

from quantkit.exporter.folder import Exported, export

__all__ = ["Exported", "export"]
