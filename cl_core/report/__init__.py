"""One offline HTML page over all experiments."""
