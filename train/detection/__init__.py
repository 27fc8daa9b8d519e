"""Evaluation of detectors: average precision, tables, curves, pictures. NumPy, on the host."""
