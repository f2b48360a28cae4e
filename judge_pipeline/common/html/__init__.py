"""Self-contained HTML pages: the page itself, its charts as SVG, and tables."""
