"""Two machines: network namespaces with a host name and an address each, connected by a virtual cable.

They share this machine's file system, as machines of a cluster share the run directory, and its processor. Each has one
process, which meets the other at the first machine's address. Not simulated: GPUs and NCCL, latency, a file system that
is shared over a network, and a machine that vanishes without closing its connections.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.system.test_compile import adapt, same_losses
from tests.system.test_slurm import SCONTROL
from tests.tiny_run import ROOT, Tiny, stage

pytestmark = pytest.mark.soak
CONFIGS = ROOT / "accelerate_configs"
PORT = 29511


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A network namespace, with a host name that both hosts can resolve."""

    name: str
    address: str
    hosts: Path

    @property
    def enter(self) -> list[str]:
        """Prefix of a command that runs on the host."""
        script = 'hostname "$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            script,
            self.name,
            str(self.hosts),
        ]

    def start(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
        words = [*self.enter, *map(str, command)]
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def vanish(self) -> None:
        """Kill everything on the host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in listed.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("network namespaces need root, iproute2, util-linux and hostname")
    table = tmp_path / "hosts"
    found = [Host(f"t5-{os.getpid()}-{i}", f"10.77.0.{i + 1}", table) for i in range(2)]
    table.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in found))
    try:
        for host in found:
            ip("netns", "add", host.name)
        one, two = found
        ip("link", "add", "eth0", "netns", one.name, "type", "veth", "peer", "name", "eth0", "netns", two.name)
        for host in found:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", device, "up")
        yield found
    finally:
        for host in found:
            if Path("/run/netns", host.name).exists():
                host.vanish()
                ip("netns", "delete", host.name)


def configuration(engine: str, directory: Path) -> Path:
    """The launch configuration of two machines with a CPU each."""
    name = {"fsdp2": "multi_node"}.get(engine, f"cpu_{engine}")
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | {"num_machines": 2, "num_processes": 2}
    content.pop("main_process_port", None)
    if "deepspeed_config" in content:
        content["deepspeed_config"]["deepspeed_multinode_launcher"] = "standard"
    path = directory / f"{engine}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def launch(hosts: list[Host], configuration: Path, *flags: object) -> list[subprocess.Popen[str]]:
    """`accelerate launch` on every host, as accelerate_configs/multi_node.yaml describes."""
    return [
        host.start(
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration, "--machine_rank", rank,
            "--main_process_ip", hosts[0].address, "--main_process_port", PORT, "stages/lm_adapt.py", *flags,
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip


def wait(running: list[subprocess.Popen[str]], seconds: float = 600) -> list[tuple[int, str]]:
    until = time.monotonic() + seconds
    return [
        (process.returncode, said)
        for process in running
        for _, said in [process.communicate(timeout=max(1, until - time.monotonic()))]
    ]


@pytest.mark.parametrize("engine", ["ddp", "zero2", "fsdp2"])
def test_two_machines_train_like_one_process(finished: Tiny, tmp_path: Path, hosts: list[Host], engine: str) -> None:
    assert stage("lm_adapt", *adapt(finished, tmp_path / "alone", "--steps", 8)).code == 0
    flags = adapt(finished, tmp_path / "two", "--steps", 8)
    for code, said in wait(launch(hosts, configuration(engine, tmp_path), *flags)):
        assert code == 0, said
    same_losses(tmp_path / "alone", tmp_path / "two")


def newest(output: Path) -> int:
    return max((int(path.name[-8:]) for path in (output / "checkpoints").glob("step-*")), default=0)


@pytest.mark.parametrize("lost", [0, 1], ids=["the first machine", "the second machine"])
def test_losing_a_machine_ends_in_one_line_and_resumes_on_one_or_two(
    finished: Tiny, tmp_path: Path, hosts: list[Host], lost: int
) -> None:
    output = tmp_path / "out"
    ddp = configuration("ddp", tmp_path)
    long = adapt(finished, output, "--steps", 100_000, "--checkpoint-every", 5, "--validate-every", 100_000)
    running = launch(hosts, ddp, *long)
    while newest(output) < 10:
        assert all(process.poll() is None for process in running), wait(running)
        time.sleep(0.05)
    hosts[lost].vanish()
    _, said = wait(running, 120)[1 - lost]
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: lost the connection to another process (")
    assert errors[0].endswith("; run the same command to resume")

    step = newest(output)
    short = adapt(finished, output, "--validate-every", 100_000, "--checkpoint-every", 5)
    alone = stage("lm_adapt", *short, "--steps", step + 2)
    assert alone.code == 0, alone.err
    for code, said in wait(launch(hosts, ddp, *short, "--steps", step + 4)):
        assert code == 0, said
    assert newest(output) == step + 4


SRUN = """\
#!/usr/bin/env bash
# One task on each host, as `srun` with --ntasks-per-node=1.
while [[ $1 == --* ]]; do shift; done
if [ "$1" = pkill ]; then exec "$@"; fi  # the hosts share a table of processes
rank=0
for host in $HOSTS; do
    ip netns exec $host unshare --uts --mount sh -c 'hostname "$0"; mount --bind "$TABLE" /etc/hosts; exec "$@"' \\
        $host env SLURM_NODEID=$rank "$@" &
    rank=$((rank + 1))
done
code=0
for task in $(jobs -p); do wait $task || code=$?; done
exit $code
"""


@pytest.mark.skipif(shutil.which("pkill") is None, reason="the script needs pkill (procps)")
def test_slurm_on_two_machines(tiny: Tiny, tmp_path: Path, hosts: list[Host]) -> None:
    """A job over both, stopped, requeued and resumed: with stand-ins for srun and scontrol."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL.replace("127.0.0.1", hosts[0].address))):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RECIPE": str(tiny.recipe), "STAGE": "lm_adapt", "RUN_DIR": str(tiny.run), "PORT": str(PORT),
        "CONFIG": str(configuration("fsdp2", tmp_path)), "REQUEUED": str(stand_ins / "requeued"),
        "SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "t5-[0-1]",
        "HOSTS": " ".join(host.name for host in hosts), "TABLE": str(hosts[0].hosts), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    words = ["bash", str(CONFIGS / "slurm.sbatch"), "--optimizer", "adamw", "--learning-rate", "0.003"]

    def submit(*flags: object) -> subprocess.Popen[str]:
        command = [*words, *map(str, flags)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)

    job = submit("--steps", 100_000, "--checkpoint-every", 5)
    while newest(tiny.run / "lm_adapt") < 10:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=300)
    step = newest(tiny.run / "lm_adapt")
    assert job.returncode == 143, said
    assert f"stopped by SIGTERM after step {step:,}, which is saved" in said
    assert (stand_ins / "requeued").read_text() == "17\n"
    job = submit("--steps", step + 2)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert tiny.manifests()["lm_adapt"].step == step + 2
