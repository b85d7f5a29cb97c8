"""Raw files in, a prepared store, batches out."""
