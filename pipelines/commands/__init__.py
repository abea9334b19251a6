"""One module per command of `contrast`; each holds a click command called `command`."""
