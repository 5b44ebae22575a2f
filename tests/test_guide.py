"""docs/guide.md names every flag and every setting."""

import re
from pathlib import Path

import pytest

from ipython_isolation import magics

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()


@pytest.mark.parametrize("flag", magics._FLAGS)
def test_every_flag(flag):
    assert re.search(rf"`[^`]*{flag}\b", GUIDE), flag


@pytest.mark.parametrize("setting", magics.Isolate.class_own_traits(config=True))
def test_every_setting(setting):
    assert re.search(rf"`{setting}`", GUIDE), setting


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert (Path(__file__).parents[1] / "docs" / target).exists(), target
