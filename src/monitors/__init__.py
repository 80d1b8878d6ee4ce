"""Learning monitors on held-out people: a falling loss is no evidence of it (method 9, 10)."""

from .run import COLUMNS, Monitors, columns_of
from .verdict import verdict

__all__ = ["COLUMNS", "Monitors", "columns_of", "verdict"]
