"""What a node reports about itself. Imports nothing but Python: it also runs where Scrimp is missing or older."""

import contextlib
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

PACKAGES = ("scrimp", "torch", "diffusers", "ray", "optuna", "mlflow", "torch-fidelity")
SCRIMP = ("scrimp_cluster", "scrimp_platform", "scrimp_spaces", "scrimp_trainers")
TMP = "/tmp"  # noqa: S108 (where Ray keeps its sessions)
NVIDIA_SMI_TIMEOUT_S = 30.0
CUDA_TIMEOUT_S = 60.0  # for importing torch and adding two numbers on each GPU

CUDA_PROBE = """
import torch
torch.cuda.init()
for number in range(torch.cuda.device_count()):
    assert torch.ones(2, device=f"cuda:{number}").sum().item() == 2, f"GPU {number} cannot add"
print(torch.version.cuda, torch.cuda.device_count())
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi shows it; memory in MiB, nan if it does not say."""

    name: str
    total: float
    free: float
    driver: str


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset's folder as a node sees it: the hash of `dataset.json`, empty if there is none, and missing shards."""

    sha256: str
    missing: int = 0


@dataclass(frozen=True)
class Facts:
    """What a node reports. Sizes in bytes; an empty error means that there was none."""

    host: str
    versions: dict[str, str]
    """Of Python and of each package; empty where it is not installed."""
    code: str
    """The hash of Scrimp's own files; empty where they are not installed."""
    memory: int
    """Available."""
    tmp: int
    """Free in /tmp."""
    tmp_share: float
    """Of /tmp that is in use."""
    gpus: list[Gpu] = field(default_factory=list)
    nvidia_smi: bool = False
    """Whether there is an nvidia-smi."""
    gpu_error: str = ""
    """Why nvidia-smi did not answer."""
    cuda: str = ""
    """The CUDA version of torch, if it computed on every GPU."""
    cuda_error: str = ""
    """Why it did not."""
    torch_cuda: str = ""
    """The CUDA version that torch was built for; empty if for none, or without torch."""
    storage: int = 0
    """Free in the storage folder."""
    storage_error: str = ""
    """Why the storage folder is not the head's."""
    dataset: DatasetFacts | None = None
    """None if none was asked for."""
    token_file: str = ""
    """That of Ray, if there is one."""
    token_mode: int = 0o600
    """Its permissions."""
    token: str = ""
    """A hash of the token that the node's Ray goes by; empty where it asks for none, or finds none."""
    worker_ports: tuple[int, int] = (0, 0)
    """First and last of the ports on which Ray's workers listen; zeros where the system picks them."""
    blocked: dict[str, bool] = field(default_factory=dict)
    """Connections that failed, a line each, and whether the node cannot train because of it."""
    clock: float = 0.0
    """Seconds by which the node's clock is ahead of the head's."""
    clock_doubt: float = 0.0
    """Seconds by which that may be wrong: half the round trip."""
    nccl_error: str = ""
    """Why the node's GPUs could not sum over NCCL."""
    nccl: str = ""
    """Whether that was tried: `tried`, or `GPUs in use`; empty where there are not two GPUs."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Facts":
        """Rebuild the facts from the plain values that `collect_facts` returned."""
        gpus = [Gpu(**gpu) for gpu in values["gpus"]]
        dataset = DatasetFacts(**values["dataset"]) if values["dataset"] else None
        return cls(**values | {"gpus": gpus, "dataset": dataset})


def collect_facts(probe: str | None, word: str, name: str, data: str | None) -> dict[str, Any]:
    """Return this node's facts as plain values.

    Parameters
    ----------
    probe : str, optional
        Folder in the storage folder where the head has written `word` to the file `head`.
    word : str
        What is written to the file `name` beside it in answer.
    data : str, optional
        A dataset's folder.
    """
    tmp = shutil.disk_usage(TMP)
    file = token_file()
    has_token = file.is_file()
    facts = Facts(
        host=os.uname().nodename,
        versions=versions(),
        code=code(),
        memory=available_memory(Path("/proc/meminfo").read_text()),
        tmp=tmp.free,
        tmp_share=1 - tmp.free / tmp.total,
        dataset=dataset(data) if data else None,
        token_file=str(file) if has_token else "",
        token_mode=file.stat().st_mode & 0o777 if has_token else 0o600,
        token=token(word),
        worker_ports=worker_ports(_parent()),
        **_storage(probe, word, name),
        **_gpus(),
    )
    return asdict(facts)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which a result may depend, without importing them."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = ""
    return installed


def code() -> str:
    """Hash the names and contents of Scrimp's own files that would be imported here, without importing them."""
    digest = hashlib.sha256()
    for package in SCRIMP:
        spec = util.find_spec(package)
        if not spec or not spec.submodule_search_locations:
            return ""

        folder = Path(next(iter(spec.submodule_search_locations)))
        files = [path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")]
        for file in sorted(files):
            digest.update(f"{package}/{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def token_file() -> Path:
    """Return where Ray looks for its token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token(salt: str) -> str:
    """Hash the token that Ray uses in this process, so that two tokens can be compared without being shown."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    try:
        secret = os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text()
    except OSError:
        return ""
    return hashlib.sha256(f"{salt}{secret.strip()}".encode()).hexdigest()


def worker_ports(raylet: str) -> tuple[int, int]:
    """Return the range of ports on which a raylet's workers listen, from the raylet's command line."""
    options = {}
    for word in raylet.split("\0"):
        name, equals, value = word.removeprefix("--").partition("=")
        if equals:
            options[name] = value
    return int(options.get("min_worker_port", 0)), int(options.get("max_worker_port", 0))


def _parent() -> str:
    """Return the command line of this process's parent, its words ended by zeros; a worker's parent is the raylet."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text()
    except OSError:
        return ""


def available_memory(meminfo: str) -> int:
    """Return the bytes that are available to new processes, according to /proc/meminfo."""
    _, _, after = meminfo.partition("MemAvailable:")
    kibibytes = int(after.split()[0])
    return 1024 * kibibytes


def dataset(folder: str) -> DatasetFacts:
    """Look at a dataset's folder; shards are only checked for existence."""
    shards = []
    try:
        text = Path(folder, "dataset.json").read_bytes()
        for split in json.loads(text)["splits"].values():
            shards += [shard["file"] for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return DatasetFacts("")

    missing = sum(not Path(folder, shard).is_file() for shard in shards)
    return DatasetFacts(hashlib.sha256(text).hexdigest(), missing)


def clock() -> float:
    """Return the time by this node's clock."""
    return time.time()


def parse_gpus(table: str) -> list[Gpu]:
    """Read what nvidia-smi prints as CSV without heading and units: name, total, free, driver."""
    gpus = []
    for line in table.splitlines():
        if line.count(",") >= 3:
            name, total, free, driver = map(str.strip, line.rsplit(",", 3))
            gpus.append(Gpu(name, _number(total), _number(free), driver))
    return gpus


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # [N/A]
        return float("nan")


def _storage(probe: str | None, word: str, name: str) -> dict[str, Any]:
    if probe is None:
        return {}
    folder = Path(probe)
    try:
        if (folder / "head").read_text() != word:
            return {"storage_error": "what the head wrote reads differently here"}
        (folder / name).write_text(word)
        return {"storage": shutil.disk_usage(folder).free}
    except FileNotFoundError:
        return {"storage_error": "what the head wrote is not there"}
    except OSError as error:
        return {"storage_error": f"{error.strerror}"}


def _gpus() -> dict[str, Any]:
    if not shutil.which("nvidia-smi"):
        return {}
    query = ["--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    table, error = _run(["nvidia-smi", *query], NVIDIA_SMI_TIMEOUT_S)
    gpus = parse_gpus(table)
    facts: dict[str, Any] = {"nvidia_smi": True, "gpu_error": error, "gpus": gpus}
    if gpus:
        # In a process of its own, which sees all GPUs and frees their memory when it ends.
        printed, error = _run([sys.executable, "-c", CUDA_PROBE], CUDA_TIMEOUT_S)
        facts["cuda_error"] = error
        facts["cuda"] = printed.split()[0] if printed else ""
        facts["torch_cuda"] = _torch_cuda()
    return facts


def _torch_cuda() -> str:
    """Read the CUDA version that torch was built for, without importing torch, which takes seconds."""
    torch = util.find_spec("torch")
    if torch is None or torch.origin is None:
        return ""
    return runpy.run_path(str(Path(torch.origin).with_name("version.py")))["cuda"] or ""


def _run(command: list[str], limit: float) -> tuple[str, str]:
    """Return what a command prints, and an error message of one line, empty if it succeeded."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode == 0:
            return done.stdout, ""
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        return "", lines[-1]
    return "", f"no answer in {limit:g} s"
