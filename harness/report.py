#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What `make run` says at its end: report.py RESULTS-DIR SECONDS."""

import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
BUILD = os.environ.get('KVM_GPC_BUILD', os.path.join(TOP, 'build'))


def git(*args):
    return subprocess.run(['git', '-c', 'safe.directory=*', '-C', os.path.join(BUILD, 'linux'), *args],
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def main():
    results, seconds = sys.argv[1], int(sys.argv[2])
    (machine,) = [d for d in os.listdir(results) if d.endswith('-xen-default')]
    path = os.path.join(results, machine)
    with open(os.path.join(path, 'tests', 'xen-default.log')) as f:
        log = f.read()
    fact = dict(re.findall(r'^# guest: (\w+) (.*)$', log, re.M))
    irqs = re.findall(r'^# irq: +\d+: +([\d ]+?) +(xen-\S+) +-?(\S+) +(.*)$', log, re.M)
    with open(os.path.join(path, 'console.log'), errors='replace') as f:
        console = f.read()
    host = re.search(r'Linux version (\S+)', console)
    patches = git('log', '--reverse', '--format=  %s', 'refs/kvm-gpc/base..HEAD').splitlines()
    dirty = git('status', '--porcelain', '-uno')
    accel = 'emulated by TCG' if '-tcg-' in machine else "the host's KVM, nested"
    ok = re.search(r'^ok 1 selftests: xen: default', log, re.M)

    print()
    print(f'Base        {git("log", "-1", "--format=%s", "refs/kvm-gpc/base")}')
    print(f'Patches     {len(patches)} applied' + (', and changes in build/linux that are not committed' if dirty else ''))
    print('\n'.join('          ' + p for p in patches))
    print(f'Kernel      {host[1] if host else "?"}, booted as the host in QEMU; its SVM or VMX is {accel}')
    print(f'Guest       the same kernel under QEMU with accel=kvm: hypervisor {fact.get("hypervisor")} '
          f'{fact.get("version")}, {fact.get("cpus")} vCPUs, clock source {fact.get("clocksource")}, '
          f'callback by {fact.get("callback")}')
    print(f'Disk        {fact.get("disk")}: '
          + ('read and written back, SHA-256 as it should be' if ok else 'see the log'))
    print(f'Events      {fact.get("upcalls")} upcalls; timer {fact.get("events_timer")}, '
          f'IPI {fact.get("events_ipi")}, disk {fact.get("events_disk")}; by channel:')
    for counts, kind, how, name in irqs:
        total = sum(int(c) for c in counts.split())
        if total:
            print(f'              {total:7}  {name.strip():16} {kind} {how}')
    print(f'Time        guest {fact.get("seconds")} s, all of it {seconds // 60} min {seconds % 60} s')
    print(f'Logs        {os.path.relpath(path)}')
    print(f'Result      {"the guest did what it should" if ok else "FAILED"}')
    return 0 if ok else 1


if __name__ == '__main__':
    sys.exit(main())
