"""The report's figures: one module a subject, all of one style."""
