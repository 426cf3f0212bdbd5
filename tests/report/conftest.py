"""Pages that several tests look at, written once."""

import pytest
from report.studies import HURTFUL, draw_study

from normlab.report import write_report


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    folder = draw_study(tmp_path_factory.mktemp("quickstart"))
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def hurtful(tmp_path_factory):
    folder = draw_study(tmp_path_factory.mktemp("hurtful"), **HURTFUL)
    write_report(folder)
    return folder
