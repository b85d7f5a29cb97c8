"""Raw files: readers and writers by format, archives, downloads. Knows no data set."""
