"""One launch of processes, for all tests that ask what they found."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
WORLDS = (1, 2, 4)


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """What the processes found, all numbers of them at once, on this machine alone."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the workers of one run have it in common
    folder = shared / "processes"
    try:
        folder.mkdir()
    except FileExistsError:
        while not (folder / "done").exists():
            time.sleep(0.1)
    else:
        launch(folder)
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in WORLDS
    }


def launch(folder):
    """Start all of them, and wait."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.scale.process"]
    runs = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for world in WORLDS
        for rank in range(world)
    ]
    try:
        for run in runs:
            _, errors = run.communicate(timeout=240)  # a loaded machine
            assert run.returncode == 0, errors
    finally:
        (folder / "done").touch()
