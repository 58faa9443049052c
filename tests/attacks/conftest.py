"""What the attacks and the fuzzer start from."""

import pytest

from tests.attacks import fuzz


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Artifacts that nobody has touched, by kind; written once a worker."""
    with fuzz.whole_ones(tmp_path_factory.mktemp("whole")) as artifacts:
        yield artifacts
