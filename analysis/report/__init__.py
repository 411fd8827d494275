"""The report of an experiment: one HTML page, and the same as Markdown, LaTeX and CSV."""
