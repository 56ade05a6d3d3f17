"""How many jobs Slurm takes from this user."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.backends.slurm.presets import Preset
from trainer.config.schema import Resources


@dataclass(frozen=True)
class Limits:
    """What a submission must keep to; the defaults are Slurm's own."""

    array: int = 1001  # elements of an array (MaxArraySize)
    jobs: float = float("inf")  # jobs that may still be queued; every element of an array is one
    reason: str = ""  # what limits `jobs`


def limits(asked: Sequence[Resources], preset: Preset) -> Limits:
    """Ask the controller and its accounting; what does not answer, or is not enforced, does not limit. A cluster's
    preset may know of smaller limits."""
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*)$", ask("scontrol", "show", "config"), re.MULTILINE))
    array = max(1, int(config.get("MaxArraySize", Limits.array)))
    array = min(array, preset.max_array or array)
    found = {"MaxJobCount": int(config["MaxJobCount"]) - queued()} if "MaxJobCount" in config else {}
    if re.search("limits|safe|qos", config.get("AccountingStorageEnforce", "")):
        user = getpass.getuser()
        for resources in asked:
            for reason, most in submit_limits(resources, user, config["ClusterName"]).items():
                left = most - queued(user)
                found[reason] = min(left, found.get(reason, left))
    if preset.max_jobs:
        found["max_jobs of the cluster's preset"] = preset.max_jobs - queued(getpass.getuser())
    if not found:
        return Limits(array)
    reason = min(found, key=lambda name: found[name])
    return Limits(array, max(0, found[reason]), reason)


def submit_limits(resources: Resources, user: str, cluster: str) -> dict[str, int]:
    """The numbers of jobs that the user's associations and QoS allow, by name; {} where they do not say."""
    where = ("user", f"name={user}", "withassoc", f"cluster={cluster}")
    columns = "format=DefaultAccount,Account,Partition,DefaultQOS,MaxSubmitJobs"
    found: dict[str, int] = {}
    for row in ask("sacctmgr", "-nP", "show", *where, columns).splitlines():
        default, account, partition, qos, most = row.split("|")
        if account != str(resources.slurm.get("account", default)):
            continue
        if partition not in ("", str(resources.slurm.get("partition", ""))):
            continue
        if most:
            found[f"MaxSubmitJobs of account {account}"] = int(most)
        qos = str(resources.slurm.get("qos", qos or "normal"))
        per_user = ask("sacctmgr", "-nP", "show", "qos", f"name={qos}", "format=MaxSubmitJobsPerUser").strip()
        if per_user:
            found[f"MaxSubmitJobsPerUser of QoS {qos}"] = int(per_user)
    return found


def queued(user: str = "") -> int:
    """Jobs that Slurm holds, those of one user that have not ended or (without one) all it remembers."""
    whose = ("-u", user) if user else ("-t", "all")
    return len(ask("squeue", "-h", "-r", *whose, "-o", "%i").splitlines())


def ask(*command: str) -> str:
    """What one of Slurm's commands prints; empty where it is missing or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
