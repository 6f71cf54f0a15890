import subprocess
import sys

import pytest

import spikegpt


def test_importing_does_nothing():
    code = "import sys, spikegpt; print('torch' in sys.modules, 'numpy' in sys.modules, len(dir(spikegpt)) > 10)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_every_public_name_is_there():
    for name in spikegpt.__all__:
        assert getattr(spikegpt, name) is not None
    assert callable(spikegpt.generate) and callable(spikegpt.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spikegpt.nothing
