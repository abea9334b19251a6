"""`python -m pipelines` is `contrast`, for environments whose scripts are not on PATH."""

from pipelines.cli import main

main()
