#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run KVM selftests, KUnit suites and the Xen guest in machines, and judge what they say.

  run.py [options] MACHINE:KERNEL:SUITE...

MACHINE is amd, intel or icount; KERNEL a file of kconfig/; SUITE a line of
suites.  The tests run one after the other in one boot of the machine, each
through kselftest's own runner.  What fails, skips or splats must be listed in
expected, and what is listed there must happen; all else fails the run.
"""

import argparse
import collections
import concurrent.futures
import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import machines

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
BUILD = os.environ.get('KVM_GPC_BUILD', os.path.join(TOP, 'build'))

# What the kernel says when something is wrong.  The scan reads all of the log
# between the two marks that the machine's init puts there.
SPLAT = re.compile(
    r'BUG: |WARNING: |WARN_ON|Oops[: ]|KASAN|KCSAN: |UBSAN: |kernel BUG at|'
    r'general protection fault|Kernel panic|possible (circular|recursive) locking|'
    r'inconsistent lock state|suspicious RCU usage|Invalid wait context|'
    r'INFO: task .* blocked|(rcu|soft lockup|hard LOCKUP).*(stall|stuck)|'
    r'self-detected stall|unreferenced object|ODEBUG: |refcount_t: |'
    r'list_(add|del) corruption|Bad page state|scheduling while atomic|'
    r'sleeping function called|DEBUG_LOCKS_WARN|unable to handle|'
    r'watchdog: |hrtimer: interrupt took .* and still|nobody cared')
# Lines that the pattern would take and that say nothing of the kernel's health.
BENIGN = re.compile(r'harness: |NMI watchdog: (Perf|Enabled)|Command line:|Kernel command line:')

KTAP = re.compile(r'K?TAP version \d')
RESULT = re.compile(r'^(ok|not ok) \d+ selftests: (\S+): (\S+)(?: # ?(.*))?$')
# Without these, a test that does not end does not say where it is.
ARGUMENTS = [('xen_shinfo_test', '-v')]
# The lines of a case within a test: its beginning, that it passed, its verdict.
CASE_RUNS = re.compile(r'^(# )*#\s+RUN\s')
CASE_PASSED = re.compile(r'^(# )*#\s+OK\s')
CASE_OK = re.compile(r'^(# )+ok \d+ (?!.*# SKIP)')
# Lines of a failed test's log that the summary shows.
TAIL = 100
# init has the kernel show all tasks before a test times out.
STAMP = r'^\[ *[\d.]+\](?:\[ *\w+\])? '
TASK = re.compile(STAMP + r'task:(\S+)\s')
FRAME = re.compile(STAMP + r' \w\S*\+0x')


def die(msg):
    sys.stderr.write(f'error: {msg}\n')
    sys.exit(2)


def read_suites():
    suites = {}
    with open(os.path.join(HERE, 'suites')) as f:
        for line in f:
            line = line.split('#')[0].strip()
            if line:
                name, _, patterns = line.partition(':')
                suites[name.strip()] = patterns.split()
    return suites


def expand(suites, name, tests):
    if name not in suites:
        die(f'no such suite: {name} ({", ".join(suites)})')
    chosen = []
    for pattern in suites[name]:
        drop = pattern.startswith('-')
        pattern = pattern.lstrip('-')
        hits = (expand(suites, pattern[1:], tests) if pattern.startswith('@')
                else fnmatch.filter(tests, pattern))
        if drop:
            chosen = [t for t in chosen if t not in hits]
        else:
            chosen += [t for t in hits if t not in chosen]
    return chosen


class Expected:
    """One line of the expected file: MACHINE KERNEL TREE VERDICT TEST [/RE/] -- REASON."""

    def __init__(self, line, number):
        head, sep, self.reason = line.partition(' -- ')
        fields = head.split(None, 5)
        if not sep or not self.reason.strip() or len(fields) < 5:
            die(f'expected:{number}: want "MACHINE KERNEL TREE VERDICT TEST [/RE/] -- REASON"')
        self.machine, self.kernel, self.tree, self.verdict, self.test = fields[:5]
        self.re = re.compile(fields[5].strip().strip('/')) if len(fields) > 5 else None
        if self.verdict not in ('fail', 'skip', 'splat', 'norun', 'may-skip', 'may-fail', 'may-splat', 'slow'):
            die(f'expected:{number}: no such verdict: {self.verdict}')
        self.number = number
        self.seen_in = set()    # plans

    def applies(self, plan):
        return (fnmatch.fnmatch(plan.machine.name, self.machine)
                and fnmatch.fnmatch(plan.kernel, self.kernel)
                and fnmatch.fnmatch(plan.tree, self.tree))

    def covers(self, plan, verdict, test, text):
        return (self.verdict.removeprefix('may-') == verdict and self.applies(plan)
                and fnmatch.fnmatch(test, self.test)
                and (self.re is None or verdict == 'slow' or self.re.search(text or '')))

    def concerns(self, plan):
        """Whether this run of PLAN could have shown what the line says."""
        if plan.tree == 'posting':
            # Cases of a test that later postings add are not there yet.
            names = {n for r in plan.results.values() for n in (r.test, *(f'{r.test}.{c}' for c, _ in r.cases))}
            return any(fnmatch.fnmatch(n, self.test) for n in names)
        return (self.test in ('boot', 'leaks') or
                any(fnmatch.fnmatch(t, self.test) or self.test.startswith(t + '.') for t in plan.results))


def read_expected(path):
    entries = []
    with open(path) as f:
        for number, line in enumerate(f, 1):
            line = line.strip()
            if line and not line.startswith('#'):
                # One entry a test: each must happen.
                fields = line.split(None, 5)
                for test in fields[4].split(',') if len(fields) > 4 else ['']:
                    entries.append(Expected(' '.join(fields[:4] + [test] + fields[5:]), number))
    return entries


class Result:
    def __init__(self, test):
        self.test = test
        self.verdict = None     # pass, fail, skip, crash, lost
        self.detail = ''
        self.lines = []
        self.cases = []         # (name, verdict) within the test
        self.log = None
        self.t0 = self.t1 = 0.0


class Plan:
    def __init__(self, text, args):
        self.text = text
        try:
            machine, self.kernel, self.suite = text.split(':')
        except ValueError:
            die(f'{text}: want MACHINE:KERNEL:SUITE')
        self.tree = args.tree
        self.seconds = args.timeout     # of each test, if it was said
        self.append = args.append       # to the kernel's command line
        self.machine = machines.choose(machine)
        self.build = os.path.join(BUILD, *([self.tree] if self.tree != 'series' else []), f'{self.tree}-{self.kernel}')
        self.name = f'{self.machine.name}-{self.kernel}-{self.suite}'
        listing = os.path.join(self.build, 'image', 'tests')
        if not os.path.exists(listing):
            die(f'there is no image of {self.tree}-{self.kernel}: make kernel')
        with open(listing) as f:
            tests = f.read().split()
        self.tests = expand(read_suites(), self.suite, tests)
        self.results = collections.OrderedDict()
        self.splats = []        # (test, line)
        self.problems = []      # what befell the machine
        self.scanned = False
        self.dir = None
        self.current = None     # the test that runs
        self.started = self.done = False
        self.deadline = float('inf')

    def patience(self, test):
        """Seconds by the host's clock after which a test's machine is given up: a
        machine that hangs does not end its test by its own clock."""
        if self.seconds:
            return self.seconds + 60
        if self.suite.endswith('slow'):
            return 3600
        if test.startswith('xen:'):
            return 240 if self.kernel == 'default' else 480
        return 600 if self.kernel == 'default' else 1200

    def timeout(self, test, entries):
        if self.seconds:
            return self.seconds
        seconds = 120 * self.machine.slowness(self.kernel)
        for e in entries:
            if e.verdict == 'slow' and e.covers(self, 'slow', test, ''):
                seconds *= int(e.re.pattern)
        return seconds


class Runner:
    def __init__(self, args):
        self.args = args
        self.entries = read_expected(args.expected)
        stamp = time.strftime('%Y%m%d-%H%M%S') + f'-{os.getpid()}'
        self.dir = os.path.abspath(args.results or os.path.join(BUILD, 'results', stamp))
        self.unexpected = []
        self.passed = self.skipped = self.listed = 0
        self.machines = set()   # that run
        self.stopping = False
        self.t0 = time.monotonic()

    def out(self, text):
        print(text, flush=True)

    def run(self, plans):
        os.makedirs(self.dir)
        if not self.args.results:
            last = os.path.join(BUILD, 'results', 'last')
            tmp = f'{last}.{os.getpid()}'
            os.symlink(os.path.basename(self.dir), tmp)
            os.replace(tmp, last)
        pool = concurrent.futures.ThreadPoolExecutor(self.args.jobs)
        try:
            for future in [pool.submit(self.boot, plan) for plan in plans]:
                future.result()
        except BaseException:
            self.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            for machine in list(self.machines):
                machine.signal()
            raise
        for plan in plans:
            self.judge(plan)

    # One machine ---------------------------------------------------------

    def boot(self, plan):
        if time.monotonic() - self.t0 > self.args.limit:
            plan.problems.append(f'not run: the whole run is limited to {self.args.limit} s')
            return
        plan.dir = os.path.join(self.dir, plan.name)
        tests = []
        for t in plan.tests:
            for e in self.entries:
                if e.verdict == 'norun' and e.covers(plan, 'norun', t, ''):
                    self.listed += 1
                    break
            else:
                tests.append(t)
        plan.tests = [t for t in tests if self.args.filter.search(t)]
        if not plan.tests:
            return
        os.makedirs(os.path.join(plan.dir, 'tests'))
        limit = min(self.args.limit - (time.monotonic() - self.t0),
                    300 * plan.machine.slowness(plan.kernel) +
                    sum(plan.timeout(t, self.entries) for t in plan.tests))
        self.out(f'== {plan.name}: {len(plan.tests)} tests, {plan.machine.about}')
        for t in plan.tests:
            plan.results[t] = Result(t)
        job = self.make_job(plan)
        machine = plan.machine.start(plan, job)
        self.machines.add(machine)
        t0 = time.monotonic()
        try:
            if self.stopping:
                return
            end = machine.pump(lambda text: self.line(plan, text), lambda: plan.done, limit,
                               lambda: plan.deadline)
        finally:
            self.machines.discard(machine)
            status = machine.status()
            machine.kill()
            for f in os.listdir(plan.dir):
                if f.startswith('tmp.'):
                    os.unlink(os.path.join(plan.dir, f))
        if not plan.done:
            what = {'limit': f'was killed after {time.monotonic() - t0:.0f} s', 'exit': f'died ({status})'}[end]
            where = f' in {plan.current}' if plan.current else '' if plan.started else ' before /init'
            plan.problems.append(f'the machine {what}{where}')
        self.scan(plan)

    def make_job(self, plan):
        root = os.path.join(plan.dir, 'tmp.job')
        os.makedirs(os.path.join(root, 'job'))
        with open(os.path.join(root, 'job/tests'), 'w') as f:
            for t in plan.tests:
                f.write(f'{t} {plan.timeout(t, self.entries)}\n')
        with open(os.path.join(root, 'job/setup'), 'w') as f:
            for name, arguments in ARGUMENTS + self.args.args:
                variable = re.sub(r'[^A-Z0-9]', '_', name.upper())
                f.write(f'export KSELFTEST_{variable}_ARGS={shlex.quote(arguments)}\n')
        parts = ['common', 'kvm']
        if any(t.startswith('xen:') for t in plan.tests):
            parts.append('xen')
        job = os.path.join(plan.dir, 'tmp.initrd')
        with open(job, 'wb') as f:
            for part in parts:
                with open(os.path.join(plan.build, 'image', part + '.cpio'), 'rb') as p:
                    shutil.copyfileobj(p, f)
            files = 'job\njob/tests\njob/setup\n'
            f.write(subprocess.run(['cpio', '-o', '-H', 'newc', '--quiet'], cwd=root,
                                   input=files.encode(), stdout=subprocess.PIPE, check=True).stdout)
        shutil.rmtree(root)
        return job

    def line(self, plan, text):
        """A line of the machine's KTAP."""
        if self.args.verbose:
            self.out(f'{plan.name} | {text}')
        word = text.split()
        if text.startswith('harness: '):
            if word[1] == 'start':
                plan.started = True
            elif word[1] == 'begin' and word[2] in plan.results:
                plan.current = word[2]
                plan.results[plan.current].t0 = time.monotonic()
                plan.deadline = time.monotonic() + plan.patience(plan.current)
            elif word[1] == 'end' and plan.current:
                self.finish(plan, plan.results[plan.current])
                plan.deadline = float('inf')
                plan.current = None
            elif word[1] == 'done':
                plan.done = True
            return
        if plan.current:
            r = plan.results[plan.current]
            r.lines.append(text)
            m = RESULT.match(text)
            if m and f'{m[2]}:{m[3]}' == r.test:
                r.detail = (m[4] or '').strip()
                r.verdict = ('skip' if r.detail.upper().startswith('SKIP') else
                             'pass' if m[1] == 'ok' else 'fail')

    def finish(self, plan, r):
        r.t1 = time.monotonic()
        r.log = os.path.join(plan.dir, 'tests', r.test.replace(':', '-') + '.log')
        with open(r.log, 'w') as f:
            f.write('\n'.join(r.lines) + '\n')
        if r.verdict is None:
            r.verdict, r.detail = 'fail', 'no verdict from the kselftest runner'
        if r.verdict == 'skip':
            why = [l for l in r.lines if 'SKIP' in l or 'skipping' in l.lower()]
            r.detail = (why[0].lstrip('# ') if why else r.detail)
        r.cases = self.subtests(r)
        if r.verdict == 'pass' and r.test.startswith('kunit:') and not r.cases:
            r.verdict, r.detail = 'fail', 'no case ran, or the results cannot be read'
        bad = [name for name, verdict in r.cases if verdict == 'fail']
        if r.verdict == 'fail' and bad:
            r.detail += '; failed: ' + ', '.join(bad)
        n = sum(1 for x in plan.results.values() if x.verdict)
        self.out(f'{plan.name} [{n}/{len(plan.results)}] {r.verdict:4} {r.test} {r.t1 - r.t0:.1f} s'
                 + (f'  {r.detail}' if r.verdict != 'pass' and r.detail else ''))

    def subtests(self, r):
        """The verdicts within a test that speaks KTAP itself."""
        inner = [l[2:] if l.startswith('# ') else l for l in r.lines[2:]]
        if not any(KTAP.match(l) for l in inner):
            return []
        tests = ktap(inner).subtests
        if r.test.startswith('kunit:'):     # the suite is a level of its own
            tests = [case for suite in tests for case in suite.subtests]
        return [(t.name or '(no result)', {'SUCCESS': 'pass', 'SKIPPED': 'skip'}.get(t.status.name, 'fail'))
                for t in tests]

    def scan(self, plan):
        """Look for splats; each belongs to the test that was running."""
        current = ''
        first = last = False
        try:
            with open(os.path.join(plan.dir, 'console.log'), errors='replace') as f:
                for text in f:
                    m = re.search(r'harness: (\w+) ?(\S*)', text)
                    if m:
                        first |= m[1] == 'start'
                        last |= m[1] == 'done'
                        current = m[2] if m[1] == 'begin' else m[1] if m[1] == 'leaks' else current
                    elif SPLAT.search(text) and not BENIGN.search(text):
                        text = re.sub(r'^\[ *[\d.]+\](\[ *\w+\])? ?', '', text.strip())
                        plan.splats.append((current or 'boot', text))
        except OSError as e:
            plan.problems.append(f'no kernel log to scan: {e}')
            return
        if not (first and last) and not plan.problems:
            plan.problems.append('the scan for splats could not run: '
                                 'the kernel log lacks its first or last mark')
        plan.scanned = first and last

    def add_stacks(self, plan, r):
        """To the log of a test that timed out, add where its tasks were."""
        with open(r.log, 'a') as f:
            f.writelines(stacks_of(r.test.partition(':')[2], r.test, os.path.join(plan.dir, 'console.log')))

    # The verdict ---------------------------------------------------------

    def complain(self, plan, test, text, log=None):
        log = log or (plan.dir and os.path.join(plan.dir, 'console.log')) or '-'
        self.unexpected.append((plan, test, text, log))

    def expect(self, plan, verdict, test, text):
        hit = [e for e in self.entries if e.covers(plan, verdict, test, text)]
        for e in hit:
            e.seen_in.add(plan)
        return bool(hit)

    def judge(self, plan):
        for p in plan.problems:
            self.complain(plan, '', p)
        for r in plan.results.values():
            if r.verdict is None:
                self.complain(plan, r.test, 'lost: the machine was gone before its end')
                continue
            if r.verdict == 'pass':
                bad = [c for c in r.cases if c[1] != 'pass' and
                       not self.expect(plan, c[1], f'{r.test}.{c[0]}', '')]
                if bad:
                    self.complain(plan, r.test, 'within it: ' + ', '.join(f'{n} {v}' for n, v in bad), r.log)
                else:
                    self.passed += 1
            elif self.expect(plan, r.verdict, r.test, r.detail):
                self.listed += 1
                self.skipped += 1
            else:
                if r.detail.startswith('TIMEOUT'):
                    self.add_stacks(plan, r)
                self.complain(plan, r.test, f'{r.verdict}: {r.detail}'
                              + (' (not listed in harness/expected)' if r.verdict == 'skip' else ''), r.log)
        # One complaint a splat and test, however often it repeats.
        for test, text in dict.fromkeys(plan.splats):
            if not self.expect(plan, 'splat', test, text):
                self.complain(plan, test, f'splat: {text}')
        if plan.problems or not plan.scanned:
            return
        # Entries for what this machine ran, and that did not happen.
        for e in self.entries:
            if (e.applies(plan) and e.concerns(plan) and plan not in e.seen_in
                    and e.verdict in ('fail', 'skip', 'splat') and not in_failed(plan, e.test)):
                self.complain(plan, e.test, f'{os.path.relpath(self.args.expected)}:{e.number} says '
                              f'"{e.verdict}", which did not happen; take the line out')

    def summary(self, plans):
        # Where there is nothing but this output, or only its end, it has to say enough.
        for log in dict.fromkeys(log for *_, log in self.unexpected):
            if os.path.basename(os.path.dirname(log)) == 'tests':
                self.out(f'\n{os.path.relpath(log)}:')
                with open(log, errors='replace') as f:
                    self.out(''.join(f'    {l}' for l in without_passed_cases(f)[-TAIL:]).rstrip())
        if self.unexpected:
            self.out('\nFailures:')
            for plan, test, text, log in self.unexpected:
                self.out(f'  {plan.name} {test or "machine"}: {text}\n      {os.path.relpath(log)}')
        self.out(f'\nresults in {os.path.relpath(self.dir)}, {time.monotonic() - self.t0:.0f} s; '
                 f'{self.listed} failed, skipped or were left out as harness/expected says')
        if self.args.junit:
            write_junit(plans, self.args.junit, {(p, t): x for p, t, x, _ in self.unexpected})
        self.out(f'{self.passed} passed, {len(self.unexpected)} failed, {self.skipped} skipped')
        return 1 if self.unexpected or not self.passed else 0


def stacks_of(program, test, console):
    """What the kernel showed of the program's tasks while the test ran."""
    stacks, running, its_own = [], False, False
    with open(console, errors='replace') as f:
        for line in f:
            if 'harness: begin ' in line:
                running = line.split()[-1] == test
            m = TASK.match(line)
            if m:
                its_own = m[1] == program[:15]
            if running and its_own and (m or FRAME.match(line)):
                stacks.append(line)
    return stacks


def without_passed_cases(lines):
    kept, case = [], []
    for line in lines:
        if CASE_RUNS.match(line):
            kept, case = kept + case, [line]
        elif CASE_PASSED.match(line):
            case = []
        elif not CASE_OK.match(line):
            (case if case else kept).append(line)
    return kept + case


# The kernel's own KTAP parser and JUnit writer -------------------------------

def kunit_tools():
    for tree in ('linux', 'base/linux', 'posting/linux'):
        path = os.path.join(BUILD, tree, 'tools/testing/kunit')
        if os.path.isdir(path):
            sys.path.insert(0, path)
            sys.dont_write_bytecode = True
            return
    die('there is no work tree to take the KTAP parser from: make tree')


def ktap(lines):
    kunit_tools()
    import kunit_parser
    import kunit_printer
    start = next(i for i, l in enumerate(lines) if KTAP.match(l))
    return kunit_parser.parse_run_tests(lines[start:], kunit_printer.Printer(print=False))


def in_failed(plan, name):
    """Whether NAME is a case of a test that did not pass: it may not have been reached."""
    r = None if name in plan.results else plan.results.get(name.partition('.')[0])
    return bool(r) and r.verdict != 'pass'


def write_junit(plans, path, unexpected):
    kunit_tools()
    from kunit_parser import Test, TestStatus
    import kunit_junit

    def node(name, status=None, log=(), subtests=()):
        t = Test()
        t.name, t.log, t.subtests = name, list(log), list(subtests)
        t.status = status
        if not t.subtests:
            t.counts.add_status(status)
        for s in t.subtests:
            t.counts.add_subtest_counts(s.counts)
        return t

    suites = []
    for p in plans:
        cases = []
        for r in p.results.values():
            status = {'pass': TestStatus.SUCCESS, 'skip': TestStatus.SKIPPED,
                      'fail': TestStatus.SKIPPED}.get(r.verdict, TestStatus.TEST_CRASHED)
            if (p, r.test) in unexpected and r.verdict:
                status = TestStatus.FAILURE
            case = node(r.test, status, r.lines if status != TestStatus.SUCCESS else ())
            case.skip_reason = r.detail
            cases.append(case)
        for (plan, test), text in unexpected.items():
            if plan is p and test not in p.results:
                cases.append(node(test or 'machine', TestStatus.FAILURE, [text]))
        suites.append(node(p.name, subtests=cases))
    kunit_junit.write_junit_result(node('kvm-gpc', subtests=suites), path)


def end_on_signals():
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda n, f: sys.exit(128 + n))


def parse_args(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('plans', nargs='+', metavar='MACHINE:KERNEL:SUITE')
    ap.add_argument('--tree', default='series', choices=('series', 'base', 'planted', 'posting'))
    ap.add_argument('--filter', type=re.compile, default=re.compile(''), help='run only tests that match this regex')
    ap.add_argument('--list', action='store_true', help='list the tests and end')
    ap.add_argument('-v', '--verbose', action='store_true', help="show the tests' output as it comes")
    ap.add_argument('--junit', metavar='FILE', help='write JUnit XML to FILE')
    ap.add_argument('-j', '--jobs', type=int, default=2, help='machines at a time; each keeps one core busy')
    ap.add_argument('--args', action='append', default=[], type=lambda s: tuple(s.split('=', 1)),
                    metavar='TEST=ARGUMENTS', help='the command line of a test')
    ap.add_argument('--append', default='', metavar='PARAMETERS', help="for the kernel's command line")
    ap.add_argument('--timeout', type=int, metavar='SECONDS', help='for each test, in place of its usual limit')
    ap.add_argument('--limit', type=int, metavar='SECONDS',
                    help='for the whole run; 5000, or none if --timeout is given')
    ap.add_argument('--results', metavar='DIR', help='write there, in place of build/results/DATE')
    ap.add_argument('--expected', default=os.path.join(HERE, 'expected'))
    args = ap.parse_args(argv)
    args.limit = args.limit or (float('inf') if args.timeout else 5000)
    return args


def main():
    args = parse_args()
    plans = [Plan(text, args) for text in args.plans]
    for name, *arguments in args.args:
        if not arguments or not any(t.endswith(f':{name}') for p in plans for t in p.tests):
            die(f'--args {"=".join([name, *arguments])}: want TEST=ARGUMENTS, of a test of these plans')
    if args.list:
        for p in plans:
            for t in p.tests:
                if args.filter.search(t):
                    print(f'{p.name} {t}')
        return 0
    end_on_signals()
    runner = Runner(args)
    runner.run(plans)
    return runner.summary(plans)


if __name__ == '__main__':
    sys.exit(main())
