"""Self-contained HTML pages: pieces of markup, figures, numbers as a reader takes them in."""
