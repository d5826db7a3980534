"""The README's first example runs as it is printed."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(
    not README.exists(), reason="the README is not beside an installed wheel's tests"
)
def test_first_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 -- our own README
    assert "GaussianMixture" in shown.getvalue()
    assert "evidence" in shown.getvalue()
