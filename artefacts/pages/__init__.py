"""Self-contained HTML pages: markup, figures and formatted numbers."""
