"""Networks and their parts, for two and three spatial axes."""
