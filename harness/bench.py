#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measure the base and the series, side by side: harness/bench.py [--rounds N]

Runs gpc_perf_test and nested_svm_perf_test on both kernels, built from the same
configuration: under -icount, where a ns is an instruction and a figure is the same each
time, nested guests also where L1's VMLOAD and VMSAVE do not exit; and on two CPUs that
run at the same time, N times in turn, of which the median counts.  What is measured so
is time, and wants an idle machine.  Writes build/bench/: bench.tsv (machine, figure,
base, series, ratio) and, by gnuplot, bench.svg.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
BUILD = os.environ.get('KVM_GPC_BUILD', os.path.join(TOP, 'build'))
OUT = os.path.join(BUILD, 'bench')
TESTS = ('kvm:gpc_perf_test', 'kvm:nested_svm_perf_test')
FIGURE = re.compile(r'^#?\s*(\w+): (\d+) ns \(', re.M)
# Figures that two CPUs are needed for; all others are counted.
TIMED = re.compile(r'senders_|refresh_|storm_|invalidate_')
# What is measured on each machine.
WANTED = {'icount': lambda n: not TIMED.match(n),
          'icount-vls': re.compile('vmrun_').match,
          'amd-mt': TIMED.match}
# FIGURE above FLOOR: the floor is none of the cache's, or other memory.
ABOVE = (('evtchn_send', 'evtchn_ioctl'), ('irqfd', 'eventfd_write'),
         ('vmrun_bare', 'vmrun_anon'), ('vmrun_kvm_bare', 'vmrun_kvm_anon'))


def measure(tree, machine):
    """{figure: ns} of one run of the tests on the tree's kernel."""
    plan = f'{machine}:default:bench'
    rc = subprocess.run([os.path.join(HERE, 'run.py'), '--tree', tree, plan],
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = os.path.realpath(os.path.join(BUILD, 'results/last'))
    figures = {}
    for test in TESTS:
        name = test.replace(':', '-') + '.log'
        found = {}
        for log in (os.path.join(d, name) for d, _, files in os.walk(last) if name in files):
            with open(log, errors='replace') as f:
                found.update((n, int(v)) for n, v in FIGURE.findall(f.read()))
        if rc.returncode or not found:
            sys.stderr.write(rc.stdout)
            raise SystemExit(f'error: {test} gave no figures on the {tree}')
        figures.update(found)
    return figures


def rows(machine, wanted, runs):
    """(machine, figure, base, series); what the base does not have is not a number."""
    median = {t: {n: statistics.median(r[n] for r in runs[t]) for n in runs[t][0]
                  if all(n in r for r in runs[t])} for t in runs}
    table = [(machine, n, median['base'].get(n, math.nan), median['series'][n])
             for n in median['series'] if wanted(n)]
    for figure, floor in ABOVE:
        if wanted(figure):
            table.append((machine, f'{figure} - {floor}',
                          *(median[t].get(figure, math.nan) - median[t].get(floor, math.nan)
                            for t in ('base', 'series'))))
    if wanted('senders_2'):
        # What two CPUs lose to each other that do different things is none of KVM's.
        for name in ('senders', 'senders_floor'):
            table.append((machine, f'{name}_2 / {name}_1',
                          *(round(median[t][name + '_2'] / median[t][name + '_1'], 2)
                            for t in ('base', 'series'))))
        table.append((machine, 'senders above floor',
                      *(round(b / f, 2) for b, f in zip(table[-2][2:], table[-1][2:]))))
    return table


def plot(table):
    dontneed = [(int(n.split('_')[1]) * 3 + 1, b, s) for m, n, b, s in table
                if re.fullmatch(r'dontneed_\d+', n) and m == 'icount']
    ns = {n: (b, s) for m, n, b, s in table if m == 'amd-mt'}
    senders = [(n, *(1000 * n / v for v in ns[f'senders_{n}'])) for n in (1, 2)]
    for name, data in (('caches', dontneed), ('senders', senders)):
        with open(os.path.join(OUT, name + '.dat'), 'w') as f:
            f.writelines(' '.join(map(str, row)) + '\n' for row in data)
    script = '''
        set terminal svg size 1000,420 background "white"
        set output "bench.svg"
        set multiplot layout 1,2
        set key top left
        set logscale xy
        set title "MADV_DONTNEED of a page that no cache is in"
        set xlabel "caches of the VM"
        set ylabel "instructions"
        plot "caches.dat" using 1:2 with linespoints title "base", \\
             "" using 1:3 with linespoints title "series"
        unset logscale
        set title "KVM_XEN_HVM_EVTCHN_SEND, each sender to a vCPU of its own"
        set xlabel "senders, a CPU each"
        set xtics 1
        set xrange [0.8:2.2]
        set yrange [0:*]
        set ylabel "events per us"
        plot "senders.dat" using 1:2 with linespoints title "base", \\
             "" using 1:3 with linespoints title "series"
        '''
    subprocess.run(['gnuplot'], input=script, text=True, cwd=OUT, check=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=3, help='runs of each on two CPUs')
    args = ap.parse_args()

    os.makedirs(OUT, exist_ok=True)
    table = []
    for machine, wanted in WANTED.items():
        rounds = args.rounds if machine == 'amd-mt' else 1
        runs = {'base': [], 'series': []}
        for r in range(rounds):
            for tree in runs:
                print(f'bench: {machine}, {tree}, {r + 1} of {rounds}', flush=True)
                runs[tree].append(measure(tree, machine))
        table += rows(machine, wanted, runs)

    with open(os.path.join(OUT, 'bench.tsv'), 'w') as f:
        f.write('machine\tfigure\tbase\tseries\tratio\n')
        for m, n, b, s in table:
            f.write(f'{m}\t{n}\t{b:g}\t{s:g}\t{s / b if b else 0:.3f}\n')
    print(f'{"":30} {"base":>10} {"series":>10}  ratio')
    for machine in WANTED:
        print(f'-- {machine}, {"ns" if machine == "amd-mt" else "instructions"}')
        for m, n, b, s in table:
            if m == machine:
                print(f'{n:30} {b:>10g} {s:>10g}  {s / b if b else 0:.2f}')
    plot(table)
    print(f'bench: {OUT}/bench.tsv and bench.svg')


if __name__ == '__main__':
    main()
