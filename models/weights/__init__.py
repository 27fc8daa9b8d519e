"""Folders of safetensors, read and written through a table of names.

Such a folder, as the Hugging Face libraries use it, holds `config.json` and the weights in
`model.safetensors`, or in several files that `model.safetensors.index.json` lists.
"""

from models.weights.reading import filled, read
from models.weights.table import Tree, Weight, check_float, read_json
from models.weights.writing import write

__all__ = ["Tree", "Weight", "check_float", "filled", "read", "read_json", "write"]
