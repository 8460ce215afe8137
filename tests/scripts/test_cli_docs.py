"""docs/cli.md says what the parser says. argparse words its help differently per Python version."""

import sys

import pytest

from scripts.write_cli_docs import TARGET, render


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page is written with Python 3.11")
def test_the_page_is_what_the_parser_says():
    assert TARGET.read_text() == render(), "run: python -m scripts.write_cli_docs"
