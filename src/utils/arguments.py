"""Command lines: help that ends with the defaults there are."""

import argparse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Add ``(default: ...)`` to the help of each argument that has a default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)
