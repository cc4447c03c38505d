"""Compiles the filter of system calls that Debian ships for containers (golang-github-containers-common) for containers
with the usual capabilities: filter.py seccomp.json > filter. The format is that of github.com/containers/common."""

import errno
import json
import sys

import seccomp

# What a container has unless it is told otherwise.
CAPABILITIES = {
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}
COMPARE = {
    "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_LT": seccomp.LT, "SCMP_CMP_LE": seccomp.LE, "SCMP_CMP_EQ": seccomp.EQ,
    "SCMP_CMP_GE": seccomp.GE, "SCMP_CMP_GT": seccomp.GT, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ,
}


def action(name, number):
    if name == "SCMP_ACT_ERRNO":
        return seccomp.ERRNO(errno.EPERM if number is None else number)
    return {"SCMP_ACT_ALLOW": seccomp.ALLOW, "SCMP_ACT_LOG": seccomp.LOG}[name]


def applies(rule):
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    arches = includes.get("arches") or ["amd64"]
    return (
        set(includes.get("caps") or []) <= CAPABILITIES
        and not set(excludes.get("caps") or []) & CAPABILITIES
        and "amd64" in arches
        and "amd64" not in (excludes.get("arches") or [])
    )


def compare(argument):
    test = COMPARE[argument["op"]]
    if test == seccomp.MASKED_EQ:
        return seccomp.Arg(argument["index"], test, argument["value"], argument["valueTwo"])
    return seccomp.Arg(argument["index"], test, argument["value"])


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        profile = json.load(file)
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    result = seccomp.SyscallFilter(default)
    for rule in filter(applies, profile["syscalls"]):
        wanted = action(rule["action"], rule.get("errnoRet"))
        # What is the default already, libseccomp refuses.
        if (rule["action"], rule.get("errnoRet")) == (profile["defaultAction"], profile.get("defaultErrnoRet")):
            continue
        for name in rule["names"]:
            try:
                number = seccomp.resolve_syscall(seccomp.Arch.X86_64, name)
            except ValueError:
                number = -1
            # Calls that this architecture, or libseccomp, does not know are refused by default.
            if number >= 0:
                result.add_rule(wanted, number, *map(compare, rule.get("args") or []))
    result.export_bpf(sys.stdout)


main()
