"""The recipes of `docs/many_volumes.md`, run as they stand there: two nodes, both of which are this machine."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from common.commands.export import export_bundle
from common.commands.run import BUNDLES
from common.datasets import write_phantom
from tests.running import REPOSITORY, free_port, run_ranks

BUNDLE = "gp_unet_brats"
TEXT = (REPOSITORY / "docs" / "many_volumes.md").read_text()
SCONTROL = """#!/bin/bash
test "$*" = "show hostnames node[1-2]" && printf 'localhost\\nlocalhost\\n'
"""
# The command once a node; since SLURM 22.05 with one core, whatever `sbatch` was told, unless the variable is set.
# There is no SLURM_LOCALID: who lets SLURM's ranks through in place of torchrun's, which SLURM knows nothing of, fails.
SRUN = """#!/bin/bash
test "$SRUN_CPUS_PER_TASK" = "$SLURM_CPUS_PER_TASK" || exit 1
for node in $(seq "$SLURM_NNODES"); do "$@" & nodes+=($!); done
for node in "${nodes[@]}"; do wait "$node" || failed=1; done
exit "${failed:-0}"
"""
# In place of MONAI, which each process would import anew: it says as what it was started, and with which arguments.
STARTED = """
import json, os, sys

with open(f"started_{os.environ['RANK']}.json", "w") as file:
    json.dump({"ranks": os.environ["WORLD_SIZE"], "arguments": sys.argv[1:]}, file)
"""


def block(heading: str) -> str:
    """The code below a heading."""
    found = re.search(rf"^## {heading}\n.*?^```\w*\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/many_volumes.md has no code under {heading!r}"
    return found[1]


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with an unzipped bundle and two scans."""
    with zipfile.ZipFile(export_bundle(BUNDLES / BUNDLE, tmp_path)) as archive:
        archive.extractall(tmp_path)
    write_phantom(tmp_path / "scans", cases=2, shape=(32, 32, 8), spacing=(4.0, 4.0, 12.0), healthy_fraction=0.0)
    return tmp_path


def filled(text: str, values: dict[str, str]) -> str:
    """The recipe with a user's values in place of its own, each of which it must hold."""
    for old, new in values.items():
        assert old in text, f"the recipe has no {old}"
        text = text.replace(old, new)
    return text


def run(place: Path, script: str, **variables: str) -> None:
    """Run a script: two processes know of each other, and with the arguments that it gives them write one table."""
    (place / "job.sh").write_text(script)
    stub = place / "monai" / "bundle"
    stub.mkdir(parents=True)
    for file, text in {"../__init__.py": "", "__init__.py": "", "__main__.py": STARTED}.items():
        (stub / file).write_text(text)
    path = os.pathsep.join([str(place), str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "LOGLEVEL": "INFO"}
    environment = os.environ | quiet | {"PATH": path} | variables
    done = subprocess.run(["bash", "job.sh"], cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("global_world_sizes=[2]") == 2, done.stderr[-3000:]
    first, second = (json.loads((place / f"started_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["ranks"] == "2"
    shutil.rmtree(stub.parent)
    ranks = run_ranks("monai.bundle", *first["arguments"], cwd=place)
    assert [done.returncode for done in ranks] == [0, 0], "".join(done.stderr[-3000:] for done in ranks)
    cases = ["phantom_000", "phantom_001"]
    assert sorted(path.name for path in (place / "results").glob("*_seg.nii.gz")) == [f"{c}_seg.nii.gz" for c in cases]
    with open(place / "results" / "predictions.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == cases


def test_slurm_script_runs_on_two_nodes(place):
    script = block("SLURM")
    for name, text in {"scontrol": SCONTROL, "srun": SRUN}.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    variables = {"SLURM_NNODES": asked["nodes"], "SLURM_CPUS_PER_TASK": asked["cpus-per-task"]}
    variables |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}
    values = {"NAME/": f"{BUNDLE}/", " DIR ": " scans ", " OUT": " results", "29500": free_port()}
    run(place, filled(script, values | {"--nproc_per_node=4": "--nproc_per_node=1"}), **variables)


def test_kubernetes_job_runs_in_two_pods(place):
    _, job = manifests()
    container = job["spec"]["template"]["spec"]["containers"][0]
    command = shlex.join(container["command"] + container["args"])
    values = {"NAME/": f"{BUNDLE}/", "/data/": f"{place}/", "segment-0.segment": "localhost", "29500": free_port()}
    index = "$(JOB_COMPLETION_INDEX)"  # Kubernetes puts it in; there is no shell
    pods = [filled(command, values | {index: str(number)}) for number in range(job["spec"]["completions"])]
    run(place, " & ".join(pods) + ' && wait "$!"')


def test_kubernetes_gives_the_first_pod_the_name_that_the_others_ask_for():
    service, job = manifests()
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"  # it names pods NAME-0, NAME-1
    arguments = pod["containers"][0]["args"]
    assert f"--master_addr={job['metadata']['name']}-0.{pod['subdomain']}" in arguments
    assert f"--nnodes={job['spec']['completions']}" in arguments
    assert job["spec"]["parallelism"] == job["spec"]["completions"]


def manifests() -> tuple[dict, dict]:
    """Service and job."""
    service, job = yaml.safe_load_all(block("Kubernetes"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job
