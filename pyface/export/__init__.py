"""Exports detectors as ONNX, OpenVINO or torch.export files; `pyface.models.exported` runs them."""

from pyface.export.export import ExportRequest, export

__all__ = ["ExportRequest", "export"]
