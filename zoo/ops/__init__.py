"""Functions two or more models or metrics use; arrays and tensors in, arrays and tensors out."""

from zoo.ops.argmax import argmax

__all__ = ["argmax"]
