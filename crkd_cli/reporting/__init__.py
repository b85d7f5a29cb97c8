"""Reporting: comparisons of evaluated runs as tables, figures and an HTML page."""
