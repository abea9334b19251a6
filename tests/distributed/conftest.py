"""One pool of two processes for all tests here; what tests of training share lies in tests/unit."""

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("unit", "contract")]


@pytest.fixture(scope="session")
def two():
    from pool import Pool

    pool = Pool()
    yield pool
    pool.close()
