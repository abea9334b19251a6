"""`contrast tune`: a small search for settings under which an experiment learns more from the same images."""
