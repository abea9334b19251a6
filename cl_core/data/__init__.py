"""From a source of images to batches of views: sampling, ingest, store, loader, views."""
