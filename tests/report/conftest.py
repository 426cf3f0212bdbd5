"""Pages that several tests look at, written once."""

import pytest
from report.studies import HURTFUL, WITH_FACTOR, WITH_TASKS, draw_study

from normlab.report import write_report


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    return reported(tmp_path_factory, "quickstart")


@pytest.fixture(scope="session")
def hurtful(tmp_path_factory):
    return reported(tmp_path_factory, "hurtful", **HURTFUL)


@pytest.fixture(scope="session")
def with_factor(tmp_path_factory):
    return reported(tmp_path_factory, "with_factor", **WITH_FACTOR)


@pytest.fixture(scope="session")
def with_tasks(tmp_path_factory):
    return reported(tmp_path_factory, "with_tasks", **WITH_TASKS)


def reported(tmp_path_factory, name, **study):
    folder = draw_study(tmp_path_factory.mktemp(name), **study)
    write_report(folder)
    return folder
