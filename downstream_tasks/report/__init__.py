"""The result folder: results, tables, figures, and the comparison of folders."""
