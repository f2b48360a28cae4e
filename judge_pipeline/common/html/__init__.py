"""Self-contained HTML pages: charts as SVG, templates, and what the label report shows."""
