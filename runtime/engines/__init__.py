"""What runs a bundle's graph: one adapter file for each runtime, which is imported when an engine is made."""

from .onnx import OnnxEngine, providers

__all__ = ["OnnxEngine", "providers"]
