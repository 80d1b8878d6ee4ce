"""The data-set folder: its format, its writer and its reader (data/README.md)."""

from .reader import DataFolder
from .writer import FolderWriter

__all__ = ["DataFolder", "FolderWriter"]
