"""Getting published sets from where they are published."""

import os
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from ..errors import nearest
from .reading import DataError
from .sources import is_there, remedy

# Seconds without an answer or another byte of it, and how often in a row, until it is given up.
SILENCE = 30.0
TRIES = 5
# Seconds before the second try; each further wait is twice as long.
WAIT = 1.0

_CHUNK = 2**16


@dataclass(frozen=True)
class Source:
    """Where a set is published.

    Attributes:
        address: Of its files, to the last slash.
        files: Their names and MD5, as they are told beside them.
        archive: Whether they are archives, to be unpacked.
    """

    address: str
    files: Mapping[str, str]
    archive: bool = False


SOURCES = {
    # The address that its author gave no longer answers; this is where PyTorch keeps the same.
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        archive=True,
    ),
}


def get(name: str, root: Path, tell: Callable[[str], object] = print) -> Path:
    """Gets a published set, unless it is there, to where it is looked for.

    What was interrupted goes on where it stood.

    Args:
        name: The set.
        root: The folder that is to have a folder with its name.
        tell: Is told in a line of what is done.

    Returns:
        Its folder.

    Raises:
        DataError: There is no such set, it cannot be reached, or what came is something else.
    """
    if name not in SOURCES:
        raise DataError(f"{name} is no set that is got from elsewhere{nearest(name, SOURCES)}")
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if is_there(name, folder):
            tell(f"{name}: it is there, in {folder}")
        else:
            _get(name, folder, tell)
    return folder


def _get(name: str, folder: Path, tell: Callable[[str], object]) -> None:
    # It takes a while to import, which is not for those who have their data.
    import pooch

    source, load_file = SOURCES[name], cast(Any, _load)
    pooch.get_logger().setLevel("WARNING")
    known = {file: f"md5:{digest}" for file, digest in source.files.items()}
    fetching = pooch.create(path=folder, base_url=source.address, registry=known)
    for file in source.files:
        url = source.address + file
        tell(f"{name}: {url}")
        try:
            fetching.fetch(file, downloader=load_file)
        except ValueError as error:  # of pooch: another checksum
            raise DataError(
                f"{url}: what came is something else, and nothing of it is kept: {error}. Try "
                f"again later, or by hand: {remedy(name)}"
            ) from error
        except OSError as error:  # requests' errors are of this kind
            raise DataError(
                f"{url} cannot be had: {error}. What has come is kept, and the same command goes "
                f"on from there. Without a network, by hand: {remedy(name)}"
            ) from error
        if source.archive:
            _unpack(folder / file)


def _load(url: str, to: Any, _: Any) -> None:
    """Loads a file beside where it is to be, going on from what is there of it.

    Raises:
        OSError: It cannot be had.
    """
    import requests

    part = Path(to).with_name(url.rpartition("/")[2] + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _load_more(url, part)
            break
        except requests.HTTPError:
            raise
        except requests.RequestException:
            failures = 1 if _size(part) > before else failures + 1
            if failures == TRIES:
                raise
            time.sleep(WAIT * 2 ** (failures - 1))
    os.replace(part, to)


def _load_more(url: str, part: Path) -> None:
    import requests

    there = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    with requests.get(url, headers=headers, stream=True, timeout=SILENCE) as answer:
        if there and answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # All of it is there.
        answer.raise_for_status()
        # Who knows no ranges sends all.
        goes_on = answer.status_code == requests.codes.partial_content
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)


def _unpack(archive: Path) -> None:
    """Puts what is in an archive beside it, whole or not at all, and removes it."""
    unfinished = archive.with_name("unpacked.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unfinished, filter="data")
    for each in unfinished.iterdir():
        target = archive.with_name(each.name)
        if target.is_dir():
            shutil.rmtree(target)
        each.rename(target)
    unfinished.rmdir()
    archive.unlink()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
