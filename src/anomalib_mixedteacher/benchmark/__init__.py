"""``mixedteacher benchmark``: models x data sets x seeds, trained with the same teachers, measured, and kept."""
