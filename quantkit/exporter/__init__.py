"""From a model in memory to a verified ONNX folder."""

from quantkit.exporter.folder import Exported, export, export_path

__all__ = ["Exported", "export", "export_path"]
