"""torchvision beside a torch it was not built for: without the declarations no import, with them one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")

DECLARE = "from mdmkit import torchvision_ops; declared = torchvision_ops.declare()\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs in a process of its own: an import cannot be taken back."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def broken():
    """The import without us, where it fails; skipped where torchvision's own operators load."""
    result = python("import torchvision")
    if result.returncode == 0:
        pytest.skip("torchvision's compiled operators load beside this torch")
    return result


def test_without_the_declarations_the_import_fails(broken):
    assert "operator torchvision::nms does not exist" in broken.stderr


def test_with_them_torchvision_and_what_needs_it_can_be_imported(broken):
    needs = [name for name in ("transformers", "torch_fidelity") if find_spec(name)]
    result = python(
        DECLARE
        + "assert declared == ('nms', 'qnms'), declared\n"
        + "assert torchvision_ops.declare() == ()\n"
        + f"import torchvision, {', '.join(needs)}\n"
        + ("from transformers import T5EncoderModel, CLIPImageProcessor\n" if "transformers" in needs else "")
        + "import torch\n"
        + "try: torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        + "except (NotImplementedError, RuntimeError) as error: print(type(error).__name__)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()  # it is declared, not implemented


def test_the_text_encoders_need_no_word_about_it(broken):
    code = "from mdmkit.text import loading; loading._transformers().T5EncoderModel"
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_operators_that_exist_are_left_alone():
    result = python(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "for name in ('nms', 'qnms'):\n"
        "    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "library.impl('nms', lambda dets, scores, iou_threshold: torch.tensor([7]), 'CPU')\n"
        + DECLARE
        + "assert declared == (), declared\n"
        "assert torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item() == 7\n"
    )
    assert result.returncode == 0, result.stderr


def test_an_extension_that_loads_is_loaded_instead():
    """Stands in for a torchvision that fits: its extension registers the operators when it is loaded."""
    result = python(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "def load(path):\n"
        "    assert path.rpartition('/')[2].startswith('_C'), path\n"
        "    for name in ('nms', 'qnms'):\n"
        "        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "torch.ops.load_library = load\n" + DECLARE + "assert declared == (), declared\n"
    )
    assert result.returncode == 0, result.stderr


def test_without_torchvision_nothing_is_declared():
    result = python(
        "import sys; sys.modules['torchvision'] = None\n" + DECLARE + "assert declared == (), declared\n"
        "import torch; assert not hasattr(torch.ops.torchvision, 'nms')\n"
    )
    assert result.returncode == 0, result.stderr
