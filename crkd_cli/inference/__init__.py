"""From an image to a label map, its file and its overlay. Knows no references and no scores."""
