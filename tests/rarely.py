"""Parameters that are tested by hand only, with `-m slow`: more of what the others beside them show."""

from typing import Any

import pytest
from _pytest.mark import ParameterSet


def rarely(*values: Any) -> list[ParameterSet]:
    """The values as parameters of slow tests."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]
