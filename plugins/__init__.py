"""The built-in parts. They register exactly as a stranger's plugin would."""
