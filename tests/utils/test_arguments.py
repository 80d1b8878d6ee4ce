"""Help of command lines."""

import argparse

from src.utils.arguments import HelpFormatter


def test_defaults_are_said_where_there_are_some():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--out", default="data/x", help="folder")
    parser.add_argument("--ids", help="text file (default: everyone)")
    text = parser.format_help()
    assert "folder (default: data/x)" in text
    assert "text file (default: everyone)\n" in text
