"""Raw files: formats, archives, downloads. Nothing here knows a dataset or the store."""
