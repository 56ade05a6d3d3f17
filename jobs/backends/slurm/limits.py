"""Limits on the number of jobs that Slurm takes from this user."""

import getpass
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.backends.slurm.client import ask, parse_time_left
from jobs.backends.slurm.presets import Preset
from trainer.config.document import Settings, find_place
from trainer.config.schema import Resources
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of a submission; the defaults are Slurm's own."""

    array: int = 1001  # elements of an array (MaxArraySize)
    jobs: float = float("inf")  # jobs that may still be queued; every element of an array is one
    reason: str = ""  # the limit that decides `jobs`


def read_limits(requests: Sequence[Resources], preset: Preset) -> Limits:
    """Ask the controller and its accounting for limits; the preset of a cluster may know smaller ones.

    A limit that Slurm does not tell or does not enforce does not count.
    """
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*)$", ask("scontrol", "show", "config").output, re.MULTILINE))
    array = max(1, int(config.get("MaxArraySize", Limits.array)))
    array = min(array, preset.max_array or array)
    left = {"MaxJobCount": int(config["MaxJobCount"]) - count_jobs()} if "MaxJobCount" in config else {}
    user = getpass.getuser()
    if re.search("limits|safe|qos", config.get("AccountingStorageEnforce", "")):
        for resources in requests:
            for reason, limit in read_submit_limits(resources, user, config["ClusterName"]).items():
                jobs = limit - count_jobs(user)
                left[reason] = min(jobs, left.get(reason, jobs))
    if preset.max_jobs:
        left["max_jobs of the cluster's preset"] = preset.max_jobs - count_jobs(user)
    if not left:
        return Limits(array)
    reason = min(left, key=lambda name: left[name])
    return Limits(array, max(0, left[reason]), reason)


def check_time(settings: Settings, block: str, resources: Resources) -> None:
    """Refuse a time limit above that of the partition, with which a job would wait for ever; ConfigError.

    A QoS may lift the limit, so nothing is refused where one is chosen, nor if the controller does not answer.
    """
    if "qos" in resources.slurm:
        return
    names = [name for name in str(resources.slurm.get("partition", "")).split(",") if name]
    rows = ask("scontrol", "show", "partition", "-o").output.splitlines()
    partitions = [dict(re.findall(r"(\w+)=(\S+)", row)) for row in rows]
    chosen = [p for p in partitions if (p["PartitionName"] in names if names else p.get("Default") == "YES")]
    if not chosen:
        return
    longest = max(chosen, key=lambda partition: parse_time_left(partition["MaxTime"]))
    if 60 * resources.minutes() > parse_time_left(longest["MaxTime"]):
        raise ConfigError(
            f"{find_place(settings, f'{block}.time', block)}: {block}.time: {resources.time!r} is more than partition "
            f"{longest['PartitionName']} allows (MaxTime {longest['MaxTime']}); give less, or another slurm.partition"
        )


def read_submit_limits(resources: Resources, user: str, cluster: str) -> dict[str, int]:
    """Return the numbers of jobs that the user's associations and QoS allow, by name; {} if they do not limit."""
    where = ("user", f"name={user}", "withassoc", f"cluster={cluster}")
    columns = "format=DefaultAccount,Account,Partition,DefaultQOS,MaxSubmitJobs"
    limits: dict[str, int] = {}
    for row in ask("sacctmgr", "-nP", "show", *where, columns).output.splitlines():
        default, account, partition, qos, max_submit = row.split("|")
        if account != str(resources.slurm.get("account", default)):
            continue
        if partition not in ("", str(resources.slurm.get("partition", ""))):
            continue
        if max_submit:
            limits[f"MaxSubmitJobs of account {account}"] = int(max_submit)
        qos = str(resources.slurm.get("qos", qos or "normal"))
        answer = ask("sacctmgr", "-nP", "show", "qos", f"name={qos}", "format=MaxSubmitJobsPerUser")
        if per_user := answer.output.strip():
            limits[f"MaxSubmitJobsPerUser of QoS {qos}"] = int(per_user)
    return limits


def count_jobs(user: str = "") -> int:
    """Return the number of a user's jobs that have not ended; without a user, of all jobs that Slurm remembers."""
    selection = ("-u", user) if user else ("-t", "all")
    return len(ask("squeue", "-h", "-r", *selection, "-o", "%i").output.splitlines())
