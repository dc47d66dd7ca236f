#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Plant bugs in the series' kernel, one at a time: the tests that each names must find it.

  planted.py [--only REGEX] [--posting NAME] [--list]

planted/NAME.patch is a diff against the end of the series, to the kernel and not to its
tests.  What is wrong with it in place is said above the diff, and in these lines:

  Plan: MACHINE:KERNEL:SUITE
  Found-by: COLLECTION:TEST[.CASE]	a line for each that fails; no other may
  Seen-as: KIND...	all of fail, splat (in the kernel's log) and crash (of the
			machine) that are to be seen; fail if there is no such line
  Runs: N		all of which must find it; 1 if there is no such line
  Args: TEST=ARGUMENTS	what make test has as ARGS

Before the first Plan: line there may be one for all plans:

  Given: NAME	given/NAME.patch is in place with and without the bug

Another Plan: line begins what is to be seen by that plan as well.  Without the bug the
same tests must pass, as often.
"""

import argparse
import fcntl
import glob
import os
import re
import shutil
import subprocess
import sys
import time

import run

HERE = run.HERE
BUILD = run.BUILD
LINUX = os.path.join(BUILD, 'linux')
DIR = os.path.join(BUILD, 'planted')
TREE = os.path.join(DIR, 'linux')
REF = 'refs/kvm-gpc/planted'

FIELD = re.compile(r'([A-Z][a-z]+(?:-[a-z]+)*): +(.*)')
TEST = re.compile(r'\w+:[\w-]+(\.[\w.-]+)?')
KINDS = ('fail', 'splat', 'crash')


def given_path(name):
    return os.path.join(HERE, 'given', name + '.patch')


def test_of(name):
    """COLLECTION:TEST of COLLECTION:TEST.CASE."""
    return name.partition('.')[0]


class Finder:
    """What is to be seen by one plan."""

    def __init__(self, plan):
        self.plan, self.found_by, self.seen_as, self.runs = plan, set(), {'fail'}, 1
        self.args = []
        self.found = 0
        self.problem = None

    @property
    def kernel(self):
        return self.plan.split(':')[1]

    @property
    def tests(self):
        return {test_of(n) for n in self.found_by}

    def is_found(self, seen):
        """Whether SEEN, (kind, name), is all of what is to be seen and nothing else.
        What the log or the machine tells, it tells of a test."""
        return ({k for k, _ in seen} == self.seen_as and
                {test_of(n) for _, n in seen} == self.tests and
                all(n in self.found_by for k, n in seen if k == 'fail') and
                ('fail' not in self.seen_as or self.found_by <= {n for _, n in seen}))


class Bug:
    def __init__(self, path):
        self.path = path
        self.name = os.path.basename(path).removesuffix('.patch')
        self.finders = []
        self.given = None
        self.problem = None
        self.seconds = 0
        about = False
        with open(path) as f:
            for line in f:
                if line.startswith(('diff ', '--- ')):
                    break
                m = FIELD.fullmatch(line.strip())
                if m:
                    self.field(*m.groups())
                else:
                    about |= bool(line.strip())
        if not about:
            self.bad('it does not say what is wrong')
        if not self.finders or not all(f.found_by for f in self.finders):
            self.bad('want "Plan: MACHINE:KERNEL:SUITE" and "Found-by: COLLECTION:TEST[.CASE]"')

    def bad(self, text):
        run.die(f'{os.path.relpath(self.path)}: {text}')

    def field(self, name, value):
        if name == 'Plan' and value.count(':') == 2:
            self.finders.append(Finder(value))
            return
        if name == 'Given' and not self.finders and os.path.exists(given_path(value)):
            self.given = value
            return
        last = self.finders[-1] if self.finders else None
        if last and name == 'Found-by' and TEST.fullmatch(value):
            last.found_by.add(value)
        elif last and name == 'Seen-as' and value.split() and not set(value.split()) - set(KINDS):
            last.seen_as = set(value.split())
        elif last and name == 'Runs' and value.isdecimal() and int(value):
            last.runs = int(value)
        elif last and name == 'Args' and re.fullmatch(r'[\w-]+=\S.*', value):
            last.args += ['--args', value]
        else:
            self.bad(f'cannot read "{name}: {value}"')

    @property
    def is_found(self):
        return not self.problem and not any(f.problem for f in self.finders)


def posting_of(bug):
    """The first posting that adds what finds the bug: NAME of patches/NN-NAME."""
    wanted = []
    for name in sorted(set().union(*(f.found_by for f in bug.finders))):
        collection, _, test = name.partition(':')
        test, _, case = test.partition('.')
        file = '_kunit' if collection == 'kunit' else f'/{test}'
        wanted.append((file + '.c', re.compile(rf'^\+.*\b{case.rpartition(".")[2] or test}\b', re.M)))
    for path in sorted(glob.glob(os.path.join(run.TOP, 'patches/*/*.patch'))):
        with open(path) as f:
            files = f.read().split('\ndiff --git ')[1:]
        for diff in files:
            if any(diff.splitlines()[0].endswith(file) and case.search(diff) for file, case in wanted):
                return os.path.basename(os.path.dirname(path)).partition('-')[2]
    return None


def git(*args, tree=TREE, check=True):
    env = dict(os.environ, GIT_CONFIG_GLOBAL='/dev/null', GIT_CONFIG_NOSYSTEM='1')
    r = subprocess.run(['git', '-c', 'safe.directory=*', '-c', 'user.name=kvm-gpc',
                        '-c', 'user.email=kvm-gpc@localhost', '-c', 'gc.auto=0', '-C', tree, *args],
                       env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if check and r.returncode:
        run.die(f'git {args[0]}: {r.stderr.strip()}')
    return r if not check else r.stdout.strip()


def make_tree(given):
    """build/planted/linux: what build/linux holds, committed or not, and what is given."""
    if not os.path.isdir(os.path.join(TREE, '.git')):
        git('clone', '-q', LINUX, TREE, tree=BUILD)
    git('update-ref', REF, git('stash', 'create', tree=LINUX) or 'HEAD', tree=LINUX)
    git('fetch', '-q', '--force', LINUX, f'{REF}:{REF}')
    git('checkout', '-q', '-f', '--detach', REF)
    if given:
        git('apply', given_path(given))
        git('commit', '-q', '-a', '-m', given)
        git('update-ref', REF, 'HEAD')


def build(tree, kernel):
    """Whether the tree's kernel builds; its tests are the series'."""
    if subprocess.run([os.path.join(HERE, 'kernel'), tree, kernel]).returncode:
        return False
    if tree == 'series':
        return not subprocess.run([os.path.join(HERE, 'image'), tree, kernel]).returncode
    image = os.path.join(DIR, f'{tree}-{kernel}', 'image')
    if not os.path.islink(image):
        os.symlink(f'../../series-{kernel}/image', image)
    return True


def look(tree, text, tests, results, arguments=()):
    """{(kind, COLLECTION:TEST[.CASE])} of what is not as it should be in one run."""
    args = run.parse_args(['--tree', tree, '--results', os.path.join(DIR, 'results', results), *arguments,
                          '--filter', '^(' + '|'.join(map(re.escape, sorted(tests))) + ')$', text])
    plan = run.Plan(text, args)
    if not tests <= set(plan.tests):
        run.die(f'{text} has no {", ".join(sorted(tests - set(plan.tests)))}')
    runner = run.Runner(args)
    runner.run([plan])
    seen = set()
    for _, test, message, _ in runner.unexpected:
        r = plan.results.get(test)
        if message.startswith('splat: '):
            seen.add(('splat', test))
        elif not r or r.verdict is None:
            seen.add(('crash', test or plan.current or 'machine'))
        else:
            kind = 'skip' if r.verdict == 'skip' else 'fail'
            seen |= {(v, f'{test}.{n}') for n, v in r.cases
                     if v != 'pass' and not runner.expect(plan, v, f'{test}.{n}', '')} or {(kind, test)}
    return seen


def say_seen(seen):
    return ', '.join(f'{kind} of {name}' for kind, name in sorted(seen)) or 'nothing'


def without(given, finders):
    """Run the tests of all bugs on a tree that has none: what they see there, they do
    not see for any bug."""
    tree, name = ('planted', given) if given else ('series', 'series')
    for text in dict.fromkeys(f.plan for f in finders):
        those = [f for f in finders if f.plan == text]
        for n in range(max(f.runs for f in those)):
            tests = set().union(*(f.tests for f in those if f.runs > n))
            arguments = sum((f.args for f in those if f.runs > n), [])
            seen = look(tree, text, tests, f'{name}-{text.replace(":", "-")}-{n + 1}', arguments)
            for f in those:
                own = {s for s in seen if test_of(s[1]) in f.tests or s[1] == 'machine'}
                if own and f.runs > n:
                    f.problem = f'without it: {say_seen(own)}'


def plant(bug):
    t0 = time.monotonic()
    git('apply', bug.path)
    try:
        for kernel in dict.fromkeys(f.kernel for f in bug.finders if not f.problem):
            if not build('planted', kernel):
                bug.problem = 'does not build'
                return
        for i, f in enumerate(bug.finders):
            for n in range(0 if f.problem else f.runs):
                seen = look('planted', f.plan, f.tests, f'{bug.name}-{i + 1}-{n + 1}', f.args)
                if f.is_found(seen):
                    f.found += 1
                else:
                    f.problem = f'seen: {say_seen(seen)}'
    finally:
        git('checkout', '-q', '-f', '--detach', REF)
        bug.seconds = time.monotonic() - t0


def check(bug):
    """That it can be planted, before anything is built."""
    r = git('apply', '--check', bug.path, check=False)
    if r.returncode:
        bug.problem = 'does not apply: ' + r.stderr.strip().replace('error: ', '').replace('\n', '; ')
    elif [f for f in git('apply', '--numstat', bug.path).splitlines()
          if f.split('\t')[2].startswith(('tools/', 'Documentation/'))]:
        bug.problem = 'is not in the kernel'


def plant_all(given, bugs):
    make_tree(given)
    for b in bugs:
        check(b)
    good = [b for b in bugs if not b.problem]
    for kernel in dict.fromkeys(f.kernel for b in good for f in b.finders):
        if not build('series', kernel) or (given and not build('planted', kernel)):
            run.die(f'does not build without a bug: {kernel}')
    without(given, [f for b in good for f in b.finders])
    for b in good:
        plant(b)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', type=re.compile, default=re.compile(''), help='plant only what matches this regex')
    ap.add_argument('--posting', metavar='NAME', help='plant only what a test of that posting is to find')
    ap.add_argument('--list', action='store_true', help='list them and end')
    ap.add_argument('--patches', default=os.path.join(HERE, 'planted'), metavar='DIR', help='where they are')
    args = ap.parse_args()

    patches = os.path.abspath(args.patches)
    bugs = [Bug(os.path.join(patches, f)) for f in sorted(os.listdir(patches))
            if f.endswith('.patch') and args.only.search(f.removesuffix('.patch'))]
    if args.posting:
        bugs = [b for b in bugs if posting_of(b) == re.sub(r'^\d\d-', '', args.posting)]
    if not bugs:
        run.die(f'no patch in {os.path.relpath(patches)} matches')
    if args.list:
        for b in bugs:
            for f in b.finders:
                print(b.name, f.plan, posting_of(b) or "-", *sorted(f.found_by))
        return 0
    os.makedirs(DIR, exist_ok=True)
    lock = open(os.path.join(DIR, 'lock'), 'w')
    fcntl.flock(lock, fcntl.LOCK_EX)
    run.end_on_signals()
    shutil.rmtree(os.path.join(DIR, 'results'), ignore_errors=True)
    for given in dict.fromkeys(b.given for b in bugs):
        plant_all(given, [b for b in bugs if b.given == given])

    print()
    for b in bugs:
        for f in b.finders:
            print(f'{"NOT FOUND" if b.problem or f.problem else "found":9}  {b.name}  {f.plan}  {f.found} of {f.runs}  '
                  f'{b.seconds:.0f} s  {" ".join(sorted(f.found_by))}')
            if b.problem or f.problem:
                print(f'{"":11}{b.problem or f.problem}')
    bad = sum(1 for b in bugs if not b.is_found)
    print(f'{len(bugs) - bad} of {len(bugs)} planted bugs found; {os.path.relpath(os.path.join(DIR, "results"))} '
          'has what the tests said')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
