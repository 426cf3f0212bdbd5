"""A study as a notebook shows it: the verdict and the table in the style of the page."""

from collections.abc import Sequence
from pathlib import Path

from . import words
from .page import VERDICTS, templates
from .study import Study
from .style import looks
from .verdicts import verdict

MOST_ROWS = 50  # that a person reads in a notebook


def notebook_html(study: Study, folder: Path, failures: Sequence[str]) -> str:
    """Returns the verdict and the table of a study as HTML, for pages by day and by night.

    Args:
        study: The study.
        folder: Where it lies.
        failures: Which runs failed and why, a line each; none where none did.
    """
    summary = study.summary
    ranked = sorted((arm for arm in summary.arms if arm.runs), key=words.by_rank(summary))
    more = len(ranked) - MOST_ROWS
    return (
        templates()
        .get_template("notebook.html")
        .render(
            name=study.name,
            setting=study.setting,
            summary=summary,
            conclusion=words.conclude(summary),
            ranked=ranked[:MOST_ROWS],
            left_out=f"The {MOST_ROWS} best; {more} more arms are left out." if more > 0 else "",
            tuned=study.tuned,
            looks=looks(summary.arms, summary.baseline),
            verdicts=VERDICTS,
            verdict=verdict,
            words=words,
            folder=folder,
            failures=failures,
        )
    )
