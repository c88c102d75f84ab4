"""Many files on a Ray cluster of two nodes, one processor each; with a broken file, and with processes that die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from nic.cli import cluster
from nic.cli.jobs import Done
from nic.errors import NicError, UsageError

ray = pytest.importorskip("ray", reason="needs Ray, which CI does not install: pip install -e '.[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes need not find this file
    options = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    two = Cluster(initialize_head=True, head_node_args=options)
    two.add_node(**options)
    two.wait_for_nodes()
    yield two.address
    two.shutdown()


def where(source: str) -> Done:
    """Long enough that one node cannot do all."""
    time.sleep(0.5)
    return Done((ray.get_runtime_context().get_node_id(),))


def fragile(folder: Path, source: str) -> Done:
    """Dies once for "unlucky", always for "doomed", and refuses "broken"."""
    with open(folder / source, "a") as file:
        file.write("tried ")
    if source == "doomed" or (source == "unlucky" and (folder / source).read_text() == "tried "):
        os.kill(os.getpid(), signal.SIGKILL)
    if source == "broken":
        raise NicError("broken")
    return Done((source,))


def test_both_nodes_work(address: str) -> None:
    outcomes = dict(cluster.outcomes([(str(index), partial(where, str(index))) for index in range(12)], address))
    assert len(outcomes) == 12
    assert len({outcome.lines for outcome in outcomes.values() if isinstance(outcome, Done)}) == 2


def test_a_lost_process_is_tried_again_and_reported_at_last(address: str, tmp_path: Path) -> None:
    sources = ["fine", "broken", "unlucky", "doomed", "last"]
    outcomes: dict[str, Any] = dict(
        cluster.outcomes([(source, partial(fragile, tmp_path, source)) for source in sources], address)
    )
    assert {source: outcomes[source].lines for source in ("fine", "unlucky", "last")} == {
        source: (source,) for source in ("fine", "unlucky", "last")
    }
    assert str(outcomes["broken"]) == "broken" and "given up" in str(outcomes["doomed"])
    tries = {source: (tmp_path / source).read_text().count("tried") for source in sources}
    assert tries == {"fine": 1, "broken": 1, "unlucky": 2, "doomed": 1 + cluster.RETRIES, "last": 1}


def test_a_folder_is_compressed_and_decompressed(address: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        Image.fromarray(skimage.data.coffee()[40 * index :][:64, :90]).save(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "4.png").write_bytes(b"no picture")
    command = [sys.executable, "-P", "-m", "nic"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([*command, "compress", "in", "-o", "out", "-e", "1", "--ray", address], **options)
    assert done.returncode == 3
    problems = [line for line in done.stderr.splitlines() if line.startswith("nic: ")]
    assert len(problems) == 1 and problems[0].startswith("nic: in/4.png: not a picture")
    assert done.stderr.splitlines()[-1].startswith("4 of 5 files, ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{index}.nic" for index in range(4)]
    done = subprocess.run([*command, "decompress", "out", "-o", "back", "--quiet", "--ray", address], **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(Image.open(tmp_path / "back" / f"{index}.png").size == (90, 64) for index in range(4))


def test_no_cluster_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Ray cluster"):
        next(cluster.outcomes([("x", partial(where, "x"))], "127.0.0.1:1"))
