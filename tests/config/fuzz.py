"""Executions of one fuzzer of configurations, in a process of its own: `fuzz.py SEED SECONDS`.

Each execution writes what it is about to do to a file, so that of a crash or a hang the last one is
known. What violates the property is printed and the process ends with status 1.
"""

import json
import math
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from normlab.compare.store import Store
from normlab.compare.study import Study
from normlab.config import ConfigError, load_study, make_study

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LONGEST_MESSAGE = 4_096
LONGEST_SECONDS = 2.0
MEMORY = 8 << 30  # addresses, of which the compiler's libraries alone take some

SCALARS = [
    *("", "~", "null", "true", "no", "on", "y", "=", "<<", "-", "?", ":", "|", ">", "@", "`", "%"),
    *(
        "0",
        "-1",
        "0777",
        "0o777",
        "0x1F",
        "0b11",
        "1_000",
        "1:30",
        "1e3",
        "1e999",
        "-0.0",
        "1e-400",
    ),
    *(".nan", ".inf", "-.INF", "NaN", "9" * 30, "9" * 5000, "0x" + "F" * 5000, "1e" + "9" * 5000),
    *("1.", ".5", "+.5", "1.5.5", "2001-01-01", "12:30:45.6", "1e", "--1", "0x", "0o8", "5%"),
    *('!!int ""', '!!bool "x"', '!!float "x"', '!!null "x"', "!!int 3", "!!str 3", "!!float 3"),
    *("!!binary x", "!!timestamp x", "!!omap [a]", "!!set {a}", "!!python/name:os.system", "! 12"),
    *("!<x> 1", "!a!b 1", "!!int [1]", "!!map x", "!!seq {a: 1}", "*a", "&a", "&a *a", "&a [*a]"),
    *("${train.epochs}", "${", "${a", "${}", "${a.${b}}", "${oc.env:HOME}", "${seeds}", "\\${a}"),
    *("${oc.select:a,b}", "$${a}", "${.a}", "${..a}", "${a[0]}", "${now:x}", "'${train}'", "${:}"),
    *("[]", "{}", "[[]]", "[{}]", "{a: b}", "[1, 2]", "{1: 2}", "{~: 1}", "{? [a] : b}", "[a: b]"),
    *(
        "[" * 100,
        "{a: " * 100,
        "[" * 40_000,
        "- " * 100,
        "? " * 100,
        "a: " * 5,
        "[" * 49 + "]" * 49,
    ),
    *(
        '"\\ud800"',
        '"\\u2028"',
        '"\\0"',
        '"\\e"',
        "\u202e",
        "\ud800",
        "\x00",
        "\x85",
        "\ufeff",
        "\u00a0",
    ),
    *(
        "constructor",
        "__proto__",
        "'__class__'",
        "%s",
        "{0}",
        "a.b",
        ".",
        "..",
        "a[0]",
        "[0]",
        "'a b'",
    ),
    *(
        "x" * 200,
        "x" * 100_000,
        "'" + "\\n" * 3,
        '"' + "\\n" * 300 + '"',
        "digits",
        "sgd",
        "mlp",
        "vit",
        "gpt",
        "text",
    ),
    *(
        "batch_norm",
        "group_norm",
        "identity",
        "ray",
        "processes",
        "inf",
        "None",
        "False",
        "1,2",
        "(1)",
    ),
    *(
        "[3, 4]",
        "[0.1, 0.2]",
        "{low: 1, high: 2}",
        "{low: 1e-3, high: 1, scale: log}",
        "0.01",
        "16",
    ),
    *(
        "{name: vit}",
        "{name: sgd, momentum: 0.5}",
        "{layer: rms_norm}",
        "{layer: batch_norm, axis: 9}",
    ),
]
PATHS = [
    *("study", "modules", "data", "data.name", "data.batch_size", "data.validation", "data.folder"),
    *(
        "model",
        "model.name",
        "model.hidden",
        "model.hidden[0]",
        "model.activation",
        "model.dropout",
    ),
    *("optimizer", "optimizer.name", "optimizer.learning_rate", "optimizer.momentum", "train"),
    *(
        "optimizer.schedule",
        "optimizer.nesterov",
        "train.epochs",
        "objective.label_smoothing",
        "variants",
    ),
    *(
        "variants.batch",
        "variants.batch.layer",
        "variants.a",
        "variants.a.b.layer",
        "variants..layer",
    ),
    *("variants.batch.epsilon", "variants.batch.model.hidden", "variants.batch.optimizer.momentum"),
    *(
        "factors",
        "factors.data.batch_size",
        "factors.layer.epsilon",
        "factors.train.epochs",
        "tasks",
    ),
    *("factors.model.hidden", "tasks.a", "tasks.a.data.name", "tasks.a.train.epochs", "tune"),
    *(
        "tune.optimizer.learning_rate",
        "tune.seeds",
        "tune.trials",
        "tune.extend",
        "tune.layer.epsilon",
    ),
    *("tune.variants.batch.momentum", "tune.train.epochs", "baseline", "target", "metric"),
    *("margin", "margin_points", "significance", "seeds", "executor", "executor.width"),
    *(
        "executor.name",
        "executor.workers",
        "",
        ".",
        "a",
        "__proto__",
        "constructor",
        "\x00",
        "\ud800",
    ),
    *("x" * 1000, "a." * 500 + "a", "tune.low", "tune.high", "tune.a.low", "study.a", "[0]", "<<"),
]
VALUES = [
    *(None, True, False, 0, -1, 3, 10**9, 10**30, 10**5000, -(10**5000), 0.5, -0.0, 1e300, 1e-300),
    *(
        math.nan,
        math.inf,
        -math.inf,
        1j,
        b"x",
        object(),
        object,
        len,
        {1, 2},
        frozenset(),
        range(3),
    ),
    *((), [], {}, [[]], [{}], {"a": 1}, {1: 2}, {None: 1}, {(): 1}, {"": 1}, {"a.b": {"c": 1}}),
    *(np.int64(3), np.float32(0.5), np.nan, np.array([1, 2]), np.array(3), np.array([], object)),
    *(np.array(["a"]), np.zeros((2, 2)), np.datetime64("2001-01-01"), np.array([None]), np.True_),
    *(
        Path("a"),
        "",
        " ",
        "a",
        "\x00",
        "\ud800",
        "\u202e",
        "\u2028",
        "x" * 100_000,
        "${train.epochs}",
    ),
    *("${", "${oc.env:HOME}", "1e-2", "true", "null", "0777", "9" * 5000, "batch_norm", "digits"),
    *(
        [0.1, 0.2],
        [16, 32],
        [None],
        [math.nan],
        {"low": 1, "high": 2},
        {"name": "vit"},
        {"name": "gpt"},
        ["a"] * 1001,
    ),
    *({"layer": "rms_norm"}, {"layer": 3}, {"layer": None}, {"layer": ["a"]}, {"name": ["a"]}),
    *([True, 1], [1, 1.0], ["1", 1], {"a": {}}, [[1], [1]], {"data.name": "mnist"}, Exception("x")),
]


def a_text(draw: random.Random) -> str:
    """A configuration of the project with some lines changed."""
    lines = draw.choice(CONFIGS).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = draw.randrange(len(lines))
        line = lines[place]
        key, colon, _ = line.partition(":")
        kind = draw.randrange(9)
        if kind <= 2:
            lines[place] = f"{key}{colon} {draw.choice(SCALARS)}"
        elif kind == 3:
            indent = " " * (len(key) - len(key.lstrip()))
            lines.insert(place, f"{indent}{draw.choice(SCALARS)}: {draw.choice(SCALARS)}")
        elif kind == 4:
            lines.insert(draw.randrange(len(lines)), line)
        elif kind == 5 and len(lines) > 1:
            del lines[place]
        elif kind == 6:
            lines[place] = " " * draw.randint(0, 6) + line.lstrip()
        elif kind == 7:
            cut = draw.randrange(len(line) + 1)
            lines[place] = (
                line[:cut] + draw.choice("\"'[]{},:#&*!|>%@`\\\t\x00\x85 -?") + line[cut:]
            )
        else:
            lines[place] = f"{draw.choice(PATHS)}: {draw.choice(SCALARS)}"
    return "\n".join(lines)


def a_yaml(draw: random.Random, depth: int = 0) -> str:
    """Some YAML, of which little is a configuration."""
    kind = draw.randrange(6 if depth < 6 else 2)
    before = draw.choice(["", "", "", "&a ", "!!str ", "!!map ", "!x "])
    if kind <= 1:
        return draw.choice(SCALARS)
    inner = [a_yaml(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    if kind <= 3:
        return before + "[" + ", ".join(inner) + "]"
    keys = [draw.choice([*PATHS[:60], "<<", draw.choice(SCALARS)]) for _ in inner]
    return before + "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, inner, strict=True)) + "}"


def an_override(draw: random.Random) -> str:
    value = draw.choice(SCALARS) if draw.random() < 0.7 else a_yaml(draw)
    return draw.choice(PATHS) + draw.choice(["=", "=", "=", "=", " = ", "", "=="]) + value


def a_mapping(draw: random.Random) -> dict:
    """A configuration of the project as Python's values, with some of them changed."""
    study = load_study(draw.choice(CONFIGS)).model_dump(exclude_unset=True)
    for _ in range(draw.randint(1, 3)):
        inside = study
        while True:
            key = draw.choice([*inside, draw.choice(PATHS), draw.choice([1, None, "", (), True])])
            below = inside.get(key)
            if isinstance(below, dict) and below and draw.random() < 0.7:
                inside = below
                continue
            inside[key] = draw.choice(VALUES) if draw.random() < 0.97 else study
            break
    return study


def check(call, folder: Path) -> str:
    """What an execution did, in a word; raises if that is none of what it may do."""
    start, refused, study = time.process_time(), None, None
    try:
        study = call()
    except ConfigError as error:
        refused = error
    took = time.process_time() - start
    if refused is not None:
        message = str(refused)
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
        odd = [sign for sign in message if not (sign.isprintable() or sign == "\n")]
        assert not odd, f"the message has {odd[:5]!r}"
        lines = message.count("\n")
        assert 1 <= lines <= len(refused.problems), "other than a line for each problem"
    else:
        assert isinstance(study, Study), f"{study!r} is no study"
        dumped = study.model_dump(mode="json")
        Store(folder).write_config(dumped)
        assert Store(folder).config() == dumped, "what was stored is another configuration"
        again = load_study(folder / "config.yaml")
        assert again == study, "what was dumped is another study"
    assert took <= LONGEST_SECONDS, f"{took:.1f} seconds"
    return "refused" if refused else "accepted"


def execution(seed: int, folder: Path):
    """The call of one execution, and how to tell it."""
    draw = random.Random(seed)
    kind = draw.randrange(4)
    if kind == 3:
        given = a_mapping(draw)
        changes = {
            draw.choice(PATHS): draw.choice(VALUES) for _ in range(draw.choice([0, 0, 1, 2]))
        }
        return (lambda: make_study(given, changes)), lambda: f"{given!r:.3000} {changes!r:.3000}"
    file, overrides = draw.choice(CONFIGS), []
    if kind < 2:
        content = (
            a_text(draw)
            if kind
            else "\n".join(
                f"{draw.choice(PATHS)}: {a_yaml(draw)}" for _ in range(draw.randint(0, 5))
            )
        )
        content = content.encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            place = draw.randrange(len(content) + 1)
            content = content[:place] + draw.randbytes(draw.randint(1, 4)) + content[place:]
        file = folder / "study.yaml"
        file.write_bytes(content)
    if kind == 2 or draw.random() < 0.2:
        overrides = [an_override(draw) for _ in range(draw.randint(1, 3))]
    told = (
        f"{file.read_bytes()!r:.3000} {overrides!r:.3000}"
        if kind < 2
        else f"{file} {overrides!r:.3000}"
    )
    return (lambda: load_study(file, overrides)), lambda: told


def main(first: int, seconds: float, last: Path) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    load_study(CONFIGS[0])  # What is loaded once counts for no execution.
    counts, failed, end, seed = {"refused": 0, "accepted": 0}, 0, time.monotonic() + seconds, first
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            last.write_text(str(seed))
            try:
                call, told = execution(seed, Path(folder))
                counts[check(call, Path(folder))] += 1
            except BaseException as error:
                failed += 1
                at = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {str(error)[:300]}"
                print(f"seed {seed}: {what} ({at.filename}:{at.lineno})", flush=True)
                print("   ", ascii(told())[:1500], flush=True)
        seed += 1
    print(json.dumps(counts | {"failed": failed, "next": seed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
