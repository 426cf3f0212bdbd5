"""How often procedures for all pairs of arms are wrong, and how often they find what is there.

    python experiments/level_and_power/level_and_power.py [--simulations 16000]

simulates studies of several arms over paired seeds and writes, for each number of arms and seeds, a
file to `results/`; what is there is not made again. Then it writes the tables of
`docs/conclusions.md` anew. Half an hour on one core.

The criterion, written before the simulation: a procedure may decide if, at level 0.05, no more
than 5% of studies come to any wrong difference, up to two standard errors of the simulation, for
every spread in `SPREADS`, with all arms alike and with half of them far behind. Of those that may,
the one decides that finds most.

The criterion leaves out that of hundreds of figures some lie two standard errors too high by
chance, and others too low. So what normlab's procedure has above 5%, or less than two standard
errors below, is simulated again, with draws of its own and many more studies, which
`results/again.json` holds; the page tells both.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import stdtr

from normlab.inference.correction import multipliers, step_down
from normlab.inference.pairs import LEAST_VARIANCE

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "conclusions.md"
LEVEL = 0.05
ARMS = (2, 3, 6, 20)
SEEDS = (3, 4, 5, 6, 8, 12, 20)
AT_A_TIME = 2000  # studies, for the sake of memory
FLIPS = 500  # random ones where there are more than so many to count
AGAIN = 1_000_000  # studies of what may lie above the level
MOST_ARMS = 20  # of these a tenth as many, for the sake of time
OF_FLIPS = 20  # so many times fewer studies are simulated for the procedures by flips

SPREADS = {
    "near normal": "normal",
    "skewed": "log-normal downwards, as accuracies are that fail to converge",
    "discrete, 360": "normal with a deviation of 1.8 examples of a test set of 360",
    "discrete, 360, narrow": "normal with a deviation of 0.7 examples",
    "discrete, 360, ceiling": "as the first, around 99.5%, cut off at 100%",
    "discrete, 10,000": "normal with a deviation of 20 examples of 10,000",
    "a failed seed": "normal, and one run of one arm at chance",
    "unequal spreads": "normal, deviations of the arms from 1 to 4",
}
BEYOND = {"skewed, unequal": "log-normal with deviations from 1 to 4, which no procedure holds"}
PROCEDURES = {
    "normlab": "paired t with the step of the scores, Shaffer",
    "t, Holm": "paired t as in the textbook, Holm",
    "Tukey": "one variance for all arms, studentized range",
    "flips, Holm": "exact sign flips of each pair, Holm",
    "flips, joint": "sign flips of all pairs at once, by steps",
}


def scores(spread, draw, studies, shift, seeds):
    """Accuracies of so many studies, of arms moved by so many deviations of their noise."""
    arms = len(shift)
    noise = draw.normal(size=(studies, arms, seeds))
    if spread.startswith("skewed"):
        noise = math.exp(0.75**2 / 2) - np.exp(0.75 * noise)
        noise /= math.sqrt(math.exp(0.75**2) * (math.exp(0.75**2) - 1))
    if spread in ("unequal spreads", "skewed, unequal"):
        noise *= np.geomspace(1, 4, arms)[:, None]
    shared = 0.7 * draw.normal(size=(studies, 1, seeds))
    moved = noise + shared + np.asarray(shift)[:, None]
    examples, deviation, middle = 0, 0.005, 0.95
    if spread.startswith("discrete"):
        examples = 10_000 if "10,000" in spread else 360
        deviation = 0.002 if "narrow" in spread or examples == 10_000 else 0.005
        middle = 0.995 if "ceiling" in spread else 0.95
    if spread == "a failed seed":
        where = (
            np.arange(studies),
            draw.integers(0, arms, studies),
            draw.integers(0, seeds, studies),
        )
        moved[where] -= 0.85 / deviation
    found = middle + deviation * moved
    return np.minimum(np.rint(examples * found) / examples, 1) if examples else found


def differences(table):
    """Paired differences, (studies, pairs, seeds)."""
    first, second = np.triu_indices(table.shape[1], 1)
    return table[:, first] - table[:, second]


def steps(table):
    """The smallest gap between two scores of each study."""
    gaps = np.diff(np.sort(table.reshape(len(table), -1), axis=1), axis=1)
    gaps = np.where(gaps > 1e-6 * np.abs(table).max(), gaps, np.inf).min(axis=1)
    return np.where(np.isinf(gaps), 0.0, gaps)


def paired_t(table, floor):
    """P-values of paired t-tests, with the variance at least `floor` squared steps."""
    found = differences(table)
    mean, variance = found.mean(axis=2), found.var(axis=2, ddof=1)
    mean[np.abs(mean) < 1e-12] = 0.0
    variance[variance < 1e-18] = 0.0
    variance = np.maximum(variance, floor * steps(table)[:, None] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, np.abs(mean) / np.sqrt(variance / table.shape[2]))
    return 2 * stdtr(table.shape[2] - 1, -t)


def shown_by_t(table):
    """Which pairs each of the procedures by Student's t shows to differ."""
    arms, seeds = table.shape[1:]
    pairs = math.comb(arms, 2)
    means = table.mean(axis=2)
    first, second = np.triu_indices(arms, 1)
    rest = table - table.mean(axis=1, keepdims=True) - means[:, :, None]
    rest += means.mean(axis=1)[:, None, None]
    freedom = (arms - 1) * (seeds - 1)
    error = np.sqrt((rest**2).sum(axis=(1, 2)) / freedom / seeds)
    ranges = np.abs(means[:, first] - means[:, second]) / np.maximum(error, 1e-12)[:, None]
    return {
        "normlab": step_down(paired_t(table, LEAST_VARIANCE), multipliers([arms])) <= LEVEL,
        "t, Holm": step_down(paired_t(table, 0.0), np.arange(pairs, 0, -1)) <= LEVEL,
        "Tukey": ranges >= stats.studentized_range.isf(LEVEL, arms, freedom),
    }


def shown_by_flips(table, draw):
    """Which pairs each of the procedures by sign flips shows to differ."""
    studies, arms, seeds = table.shape
    if 2 ** (seeds - 1) <= FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)) & 1)
    else:
        signs = np.vstack([np.ones((1, seeds)), 2.0 * draw.integers(0, 2, (FLIPS, seeds)) - 1])
    pairs = math.comb(arms, 2)
    alone, joint = np.empty((studies, pairs)), np.empty((studies, pairs))
    for study in range(studies):
        found = differences(table[study : study + 1])[0]
        lengths = np.linalg.norm(found, axis=1)
        found /= np.where(lengths > 0, lengths, 1)[:, None]
        statistics = np.abs(signs @ found.T)
        observed = np.abs(found.sum(axis=1)) - 1e-12
        alone[study] = np.mean(statistics >= observed, axis=0)
        order = np.argsort(-observed, kind="stable")
        largest = np.maximum.accumulate(statistics[:, order[::-1]], axis=1)[:, ::-1]
        joint[study, order] = np.maximum.accumulate(np.mean(largest >= observed[order], axis=0))
    return {
        "flips, Holm": step_down(alone, np.arange(pairs, 0, -1)) <= LEVEL,
        "flips, joint": joint <= LEVEL,
    }


def shifts(arms):
    """How far the arms lie apart where a level is counted: all alike, and half of them behind."""
    half = np.where(np.arange(arms) >= arms // 2, -8.0, 0.0)
    return [np.zeros(arms)] + ([half] if arms > 2 else [])


def simulate(arms, seeds, simulations):
    """Level and power of all procedures, in percent, for studies of so many arms and seeds."""
    draw = np.random.default_rng([arms, seeds])
    first, second = np.triu_indices(arms, 1)
    # Neighbours twice the deviation of their paired differences apart: 2 times the root of 2.
    apart = -2 * math.sqrt(2) * np.arange(arms)
    level, power = {}, {}
    for spread in [*SPREADS, *BEYOND]:
        wrong = {}
        for shift in shifts(arms):
            alike = shift[first] == shift[second]
            erred = {name: [] for name in PROCEDURES}
            for start in range(0, simulations, AT_A_TIME):
                table = scores(spread, draw, min(AT_A_TIME, simulations - start), shift, seeds)
                found = shown_by_t(table) | shown_by_flips(table[::OF_FLIPS], draw)
                for name, shown in found.items():
                    erred[name].append(shown[:, alike].any(axis=1))
            for name, it in erred.items():
                share = float(np.concatenate(it).mean())
                wrong[name] = max(wrong.get(name, 0.0), round(100 * share, 2))
        level[spread] = wrong
        table = scores(spread, draw, simulations // OF_FLIPS, apart, seeds)
        found = shown_by_t(table) | shown_by_flips(table, draw)
        power[spread] = {
            name: [
                round(100 * float(shown.mean()), 1),
                round(100 * float(shown[:, first == 0].all(axis=1).mean()), 1),
            ]
            for name, shown in found.items()
        }
    return {
        "arms": arms,
        "seeds": seeds,
        "simulations": simulations,
        "level": level,
        "power": power,
    }


def error(simulations):
    """Two standard errors of a level, in percent."""
    return 200 * math.sqrt(LEVEL * (1 - LEVEL) / simulations)


def above(cells):
    """Arms, seeds and spread of what normlab's procedure may have above the level."""
    least = 100 * LEVEL - error(cells[0]["simulations"])
    return [
        (cell["arms"], cell["seeds"], spread)
        for cell in cells
        for spread in SPREADS
        if cell["level"][spread]["normlab"] > least
    ]


def studies_again(arms):
    """How many studies of so many arms are simulated again."""
    return AGAIN // 10 if arms >= MOST_ARMS else AGAIN


def simulate_again(arms, seeds, spread):
    """Percentage of studies with a wrong difference by normlab's procedure, with draws anew."""
    studies = studies_again(arms)
    draw = np.random.default_rng([arms, seeds, list(SPREADS).index(spread), AGAIN])
    first, second = np.triu_indices(arms, 1)
    wrong = []
    for shift in shifts(arms):
        alike, erred = shift[first] == shift[second], 0
        for _ in range(studies // AT_A_TIME):
            p = paired_t(scores(spread, draw, AT_A_TIME, shift, seeds), LEAST_VARIANCE)
            shown = step_down(p, multipliers([arms])) <= LEVEL
            erred += int(shown[:, alike].any(axis=1).sum())
        wrong.append(round(100 * erred / studies, 3))
    return {"arms": arms, "seeds": seeds, "spread": spread, "level": max(wrong)}


def told_again(cells, again):
    """What came of simulating again, as lines."""
    worst = sorted(again, key=lambda it: -it["level"])
    over = [it for it in worst if it["level"] > 100 * LEVEL + error(studies_again(it["arms"]))]
    figures = len(cells) * len(SPREADS)
    lines = [
        f"Of normlab's {figures} figures behind this table, the last spread apart, {len(again)} "
        "lie above 5.0",
        "or less than two standard errors below. These were simulated again with draws of their",
        f"own, {AGAIN:,} studies each ({AGAIN // 10:,} of {MOST_ARMS} arms): two standard errors "
        f"are {error(AGAIN):.2f} ({error(AGAIN // 10):.2f}).",
        f"{len(over) or 'None'} of them came out more than these above 5.0"
        + (":" if over else f"; the largest is {worst[0]['level']:.2f}."),
        "",
    ]
    if over:
        lines += [row("spread", "arms", "seeds", "at first", "again")]
        lines += [row("---", *["---:"] * 4)]
        first = {(cell["arms"], cell["seeds"]): cell["level"] for cell in cells}
        for it in over:
            arms, seeds, spread = it["arms"], it["seeds"], it["spread"]
            before = first[arms, seeds][spread]["normlab"]
            counts = str(arms), str(seeds)
            lines += [row(spread, *counts, f"{before:.2f}", f"{it['level']:.2f}")]
        lines += [""]
    return lines


def tables(cells, again):
    """The tables of the documentation, as lines."""
    simulations = cells[0]["simulations"]
    lines = [
        "Level: the percentage of studies that come to any wrong difference; of the "
        f"{len(cells)} combinations of",
        "arms and seeds below the worst, with all arms alike or half of them far behind.",
        f"{simulations:,} studies each ({simulations // OF_FLIPS:,} for sign flips): two standard "
        f"errors are {error(simulations):.1f} ({error(simulations // OF_FLIPS):.1f}).",
        "",
        row("spread", *PROCEDURES),
        row("---", *["---:"] * len(PROCEDURES)),
    ]
    for spread in [*SPREADS, *BEYOND]:
        worst = [max(cell["level"][spread][name] for cell in cells) for name in PROCEDURES]
        lines.append(row(spread, *(f"{it:.1f}" for it in worst)))
    lines += [
        "",
        *told_again(cells, again),
        "Power: arms whose neighbours are two standard deviations of their paired differences "
        "apart,",
        "near normal. The percentage of differences shown, and of studies in which the best arm is",
        "shown to be better than every other.",
        "",
        row("arms", "seeds", *PROCEDURES),
        row(*["---:"] * (2 + len(PROCEDURES))),
    ]
    for cell in cells:
        found = [cell["power"]["near normal"][name] for name in PROCEDURES]
        counts = str(cell["arms"]), str(cell["seeds"])
        lines.append(row(*counts, *(f"{shown:.0f}, {best:.0f}" for shown, best in found)))
    return lines


def row(*cells):
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def write_tables(page, cells, again):
    """Puts the tables between their marks on a page."""
    begin, end = "<!-- level and power -->", "<!-- end of level and power -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    text = "\n".join([begin, "", *tables(cells, again), "", end])
    page.write_text(before + text + after, "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=16_000)
    simulations = parser.parse_args().simulations
    cells = []
    for arms in ARMS:
        for seeds in SEEDS:
            path = HERE / "results" / f"{arms}_arms_{seeds}_seeds.json"
            if not path.exists():
                cell = simulate(arms, seeds, simulations)
                path.write_text(json.dumps(cell, indent=1) + "\n", "utf-8")
            cells.append(json.loads(path.read_text("utf-8")))
    path = HERE / "results" / "again.json"
    again = json.loads(path.read_text("utf-8")) if path.exists() else []
    done = {(it["arms"], it["seeds"], it["spread"]) for it in again}
    for one in above(cells):
        if one not in done:
            again.append(simulate_again(*one))
            path.write_text(json.dumps(again, indent=1) + "\n", "utf-8")
    write_tables(PAGE, cells, again)


if __name__ == "__main__":
    main()
