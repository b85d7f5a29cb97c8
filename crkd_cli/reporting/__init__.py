"""Comparisons of evaluated runs as tables, figures and a page. Scores nothing itself."""
