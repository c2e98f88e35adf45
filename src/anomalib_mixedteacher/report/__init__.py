"""One self-contained HTML file from a benchmark's run folder."""
