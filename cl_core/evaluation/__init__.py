"""Judge a frozen or fine-tuned representation."""
