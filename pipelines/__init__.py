"""The orchestration: command line, stages, DVC, Prefect. Thin; no maths."""
