"""Found by its entry point, light to import, and conforming: without xformers or CUDA it falls back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mdmkit.testing import check_component


@pytest.mark.filterwarnings("ignore::UserWarning:xformers")
def test_the_component_conforms_with_its_fallback() -> None:
    check_component("attention/xformers.attention")


def test_finding_it_imports_neither_torch_nor_xformers() -> None:
    code = (
        "import sys; from mdmkit.plugins import load_registry\n"
        "assert 'xformers.attention' in load_registry().names('attention')\n"
        "assert not {'torch', 'xformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
