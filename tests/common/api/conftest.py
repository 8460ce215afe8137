"""A test fails if an app answered anything that its clients' types do not allow."""

import pytest

from tests.common.api.answer_types import Checked


@pytest.fixture(autouse=True)
def answers_fit_the_types():
    Checked.problems.clear()
    yield
    assert not Checked.problems, "\n".join(Checked.problems[:5])
