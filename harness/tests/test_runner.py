# SPDX-License-Identifier: GPL-2.0-only
"""The runner's verdict, on machines that are shell scripts."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ET

HARNESS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(HARNESS)

# run.py, or what makes use of it, with a machine that runs the shell script $FAKE;
# $1 is the kernel's log, $2 is KTAP, $3 the initramfs, $4 the kernel.
WRAPPER = '''
import os, sys
sys.path.insert(0, {harness!r})
import machines
class Fake:
    name, about = 'fake', 'a shell script'
    def slowness(self, kernel):
        return 1
    def start(self, plan, initrd):
        paths = machines.fifos(plan)
        return machines.Process(plan, ['sh', os.environ['FAKE'], paths['console'], paths['ktap'],
                                       initrd, os.path.join(plan.build, 'bzImage')], paths)
machines.choose = lambda kind: Fake()
import run
run.kunit_tools = lambda: sys.path.insert(0, {kunit!r})
import {main} as main
sys.exit(main.main())
'''

PRELUDE = '''
exec 3>"$1" 4>"$2"
note() { echo "[    1.0] harness: $*" >&3; echo "harness: $*" >&4; }
result() { printf 'TAP version 13\\n1..1\\n# selftests: kvm: %s\\n%s\\n' "$1" "$2" >&4; }
pass() { note begin kvm:$1; result $1 "ok 1 selftests: kvm: $1"; note end kvm:$1 0; }
note start 7.3.4
'''
END = 'note leaks\nnote done 0\n'


class Machine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        out = subprocess.run([os.path.join(HARNESS, 'base')], stdout=subprocess.PIPE, text=True, check=True)
        cls.kunit = tempfile.mkdtemp(prefix='kvm-gpc-test.')
        for name in ('kunit_parser.py', 'kunit_printer.py', 'kunit_junit.py'):
            text = subprocess.run(['git', '-c', 'safe.directory=*', '--git-dir', out.stdout.strip(),
                                   'cat-file', 'blob', 'HEAD:tools/testing/kunit/' + name],
                                  stdout=subprocess.PIPE, check=True).stdout
            with open(os.path.join(cls.kunit, name), 'wb') as f:
                f.write(text)
        cls.addClassCleanup(shutil.rmtree, cls.kunit)

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix='kvm-gpc-test.')
        self.addCleanup(shutil.rmtree, self.dir)


class Runner(Machine):
    def setUp(self):
        super().setUp()
        image = os.path.join(self.dir, 'series-default/image')
        os.makedirs(image)
        for part in ('common', 'kvm', 'xen'):
            open(os.path.join(image, part + '.cpio'), 'w').close()
        with open(os.path.join(image, 'tests'), 'w') as f:
            f.write('kvm:one\nkvm:two\nkunit:s\n')
        self.wrapper = os.path.join(self.dir, 'wrapper.py')
        with open(self.wrapper, 'w') as f:
            f.write(WRAPPER.format(harness=HARNESS, kunit=self.kunit, main='run'))
        self.expected = os.path.join(self.dir, 'expected')
        open(self.expected, 'w').close()

    def command(self, script, *args, suite='kvm'):
        fake = os.path.join(self.dir, 'fake')
        with open(fake, 'w') as f:
            f.write(PRELUDE + script)
        env = dict(os.environ, KVM_GPC_BUILD=self.dir, FAKE=fake)
        return [sys.executable, self.wrapper, '--expected', self.expected, *args, f'x:default:{suite}'], env

    def run_(self, script, *args, expected='', suite='kvm'):
        with open(self.expected, 'w') as f:
            f.write(expected)
        argv, env = self.command(script, *args, suite=suite)
        r = subprocess.run(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        return r.returncode, r.stdout, r.stdout.splitlines()[-1]

    def fails(self, script, *says, last=None, **kw):
        rc, out, end = self.run_(script, **kw)
        self.assertEqual(rc, 1, out)
        for s in says:
            self.assertIn(s, out)
        if last:
            self.assertEqual(end, last)

    def passes(self, script, last, **kw):
        rc, out, end = self.run_(script, **kw)
        self.assertEqual((rc, end), (0, last), out)

    def test_pass(self):
        self.passes('pass one\npass two\n' + END, '2 passed, 0 failed, 0 skipped')

    def test_failing_test(self):
        self.fails('pass one\nnote begin kvm:two\necho "# why it failed" >&4\n'
                   'result two "not ok 1 selftests: kvm: two # exit=254"\nnote end kvm:two 1\n' + END,
                   'kvm:two: fail: exit=254', 'tests/kvm-two.log', '# why it failed',
                   last='1 passed, 1 failed, 0 skipped')

    def test_failing_case(self):
        """The summary shows what a case said that failed, and no other's; it ends with the cases' names."""
        _, out, _ = self.run_('pass one\nnote begin kvm:two\n'
                              'result two "# TAP version 13\n# 1..2\n'
                              '# #  RUN           f.a ...\n# # fine\n# #            OK  f.a\n# ok 1 f.a\n'
                              '# #  RUN           f.b ...\n# # broken\n# # b: Test failed\n# not ok 2 f.b\n'
                              'not ok 1 selftests: kvm: two # exit=1"\nnote end kvm:two 1\n' + END)
        self.assertIn('# # broken', out)
        self.assertNotIn('# # fine', out)
        self.assertIn('failed: f.b', out.split('Failures:')[1])

    def test_timeout(self):
        """The summary shows where the tasks were of a test that timed out, and no other task."""
        _, out, _ = self.run_('pass one\nnote begin kvm:two\n'
                              'echo "[    1.0] task:two             state:S stack:0     pid:7\n'
                              '[    1.0]  <TASK>\n[    1.0]  schedule+0x27/0xa0\n[    1.0]  ? maybe+0x1/0x2\n'
                              '[    1.0]  </TASK>\n[    1.0] task:other           state:S stack:0     pid:8\n'
                              '[    1.0]  elsewhere+0x1/0x2" >&3\n'
                              'result two "not ok 1 selftests: kvm: two # TIMEOUT 9 seconds"\n'
                              'note end kvm:two 1\n' + END)
        self.assertIn('task:two', out)
        self.assertIn('schedule+0x27', out)
        for line in ('maybe+', 'task:other', 'elsewhere+'):
            self.assertNotIn(line, out)

    def test_posting(self):
        """What is expected of a case that a later posting adds need not happen."""
        os.makedirs(os.path.join(self.dir, 'posting'))
        os.rename(os.path.join(self.dir, 'series-default'), os.path.join(self.dir, 'posting/posting-default'))
        script = 'pass one\npass two\n' + END
        argv, env = self.command(script, '--tree', 'posting')
        for test, rc in (('kvm:two.later', 0), ('kvm:two', 1)):
            with open(self.expected, 'w') as f:
                f.write(f'fake * * skip {test} -- reason\n')
            r = subprocess.run(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
            self.assertEqual(r.returncode, rc, r.stdout)

    SKIP = ('pass one\nnote begin kvm:two\necho "# 1..0 # SKIP - no VMX" >&4\n'
            'result two "ok 1 selftests: kvm: two # SKIP"\nnote end kvm:two 0\n') + END

    def test_unlisted_skip(self):
        self.fails(self.SKIP, 'kvm:two: skip', 'no VMX', 'not listed', last='1 passed, 1 failed, 0 skipped')

    def test_listed_skip(self):
        self.passes(self.SKIP, '1 passed, 0 failed, 1 skipped',
                    expected='fake * * skip kvm:two /no VMX/ -- reason\n')

    def test_skip_for_another_reason(self):
        self.fails(self.SKIP, 'kvm:two: skip', expected='fake * * skip kvm:two /no SVM/ -- reason\n')

    def test_skip_of_a_case(self):
        self.fails('pass one\nnote begin kvm:two\n'
                   'result two "# TAP version 13\n# 1..2\n# ok 1 a\n# ok 2 b # SKIP no\nok 1 selftests: kvm: two"\n'
                   'note end kvm:two 0\n' + END, 'kvm:two: within it: b skip')

    def test_splat(self):
        self.fails('pass one\nnote begin kvm:two\necho "[    2.0] BUG: KASAN: slab-use-after-free in x" >&3\n'
                   'result two "ok 1 selftests: kvm: two"\nnote end kvm:two 0\n' + END,
                   'kvm:two: splat: BUG: KASAN: slab-use-after-free in x')

    def test_entry_that_no_longer_happens(self):
        self.fails('pass one\npass two\n' + END, 'expected:1 says "fail", which did not happen',
                   expected='fake * * fail kvm:two -- reason\n')
        self.fails('pass one\npass two\n' + END, 'expected:1 says "splat", which did not happen',
                   expected='fake * * splat kvm:one /KASAN/ -- reason\n')

    def test_entry_without_reason(self):
        rc, out, _ = self.run_(END, expected='fake * * fail kvm:two\n')
        self.assertEqual(rc, 2)
        self.assertIn('expected:1', out)

    def test_died(self):
        self.fails('pass one\nnote begin kvm:two\nexit 3\n',
                   'the machine died (exit 3) in kvm:two', 'kvm:two: lost')

    def test_crashed(self):
        self.fails('pass one\nnote begin kvm:two\necho "[    2.0] Kernel panic - not syncing: x" >&3\n'
                   'kill -SEGV $$\n', 'died (signal 11) in kvm:two', 'kvm:two: splat: Kernel panic')

    def test_killed(self):
        rc, out, _ = self.run_('pass one\nnote begin kvm:two\nwhile :; do sleep 60; done\n', '--limit', '1')
        self.assertEqual(rc, 1)
        self.assertRegex(out, r'was killed after [12] s in kvm:two')

    def test_log_without_marks(self):
        self.fails('exec 3>/dev/null\npass one\npass two\n' + END, 'the scan for splats could not run')

    def test_no_verdict(self):
        self.fails('pass one\nnote begin kvm:two\nnote end kvm:two 0\n' + END,
                   'no verdict from the kselftest runner')

    def asks_for(self, results):
        """A machine whose debugfs has a suite with these results, or none."""
        debugfs = os.path.join(self.dir, 'debugfs')
        shutil.rmtree(debugfs, ignore_errors=True)
        if results is not None:
            os.makedirs(os.path.join(debugfs, 's'))
            open(os.path.join(debugfs, 's/run'), 'w').close()
            with open(os.path.join(debugfs, 's/results'), 'w') as f:
                f.write(results)
        with open(os.path.join(HARNESS, 'guest/kunit-suite')) as f:
            script = f.read().replace('/sys/kernel/debug/kunit', debugfs)
        self.assertIn(debugfs, script)
        with open(os.path.join(self.dir, 's'), 'w') as f:
            f.write(script)
        # As kselftest's runner does it.
        return (f'note begin kunit:s\nout=$(sh {self.dir}/s); rc=$?\n'
                'case $rc in 0) r="ok 1"; d= ;; 4) r="ok 1"; d=" # SKIP" ;; *) r="not ok 1"; d=" # exit=$rc" ;; esac\n'
                '{ printf "TAP version 13\\n1..1\\n# selftests: kunit: s\\n"; echo "$out" | sed "s/^/# /"\n'
                '  echo "$r selftests: kunit: s$d"; } >&4\nnote end kunit:s 0\n' + END)

    # What debugfs shows.
    SUITE = 'KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    # module: kvm\n'

    def test_kunit_pass(self):
        self.passes(self.asks_for(self.SUITE + '    1..2\n    ok 1 a\n    # b: said this\n    ok 2 b\n'
                               '# s: pass:2 fail:0 skip:0 total:2\nok 1 s\n'),
                    '1 passed, 0 failed, 0 skipped', suite='kunit')
        with open(os.path.join(self.dir, 'debugfs/s/run')) as f:
            self.assertTrue(f.read(), 'nobody asked for a run')

    def test_kunit_failing_case(self):
        self.fails(self.asks_for(self.SUITE + '    1..2\n    ok 1 a\n    # b: EXPECTATION FAILED at x.c:1\n'
                              '    not ok 2 b\nnot ok 1 s\n'),
                   'kunit:s: fail: exit=1; failed: b', 'tests/kunit-s.log', suite='kunit')

    def test_kunit_skip(self):
        skip = self.asks_for('KTAP version 1\n1..1\nok 1 s # SKIP no KVM\n')
        self.fails(skip, 'kunit:s: skip', 'no KVM', 'not listed', suite='kunit')
        # Listed; but a run in which nothing passes is none.
        rc, out, end = self.run_(skip, suite='kunit', expected='fake * * skip kunit:s /no KVM/ -- reason\n')
        self.assertEqual((rc, end), (1, '0 passed, 0 failed, 1 skipped'), out)

    def test_kunit_skip_of_a_case(self):
        self.fails(self.asks_for(self.SUITE + '    1..2\n    ok 1 a\n    ok 2 b # SKIP no\nok 1 s\n'),
                   'kunit:s: within it: b skip', suite='kunit')

    def test_kunit_nothing_ran(self):
        for results in (None,                                           # no such suite
                        '',                                             # nothing to read
                        self.SUITE + '    1..2\n    ok 1 a\n',           # cut off
                        'KTAP version 1\n1..1\nok 1 t\n',               # another's
                        self.SUITE + '    # failed to initialize (-22)\nnot ok 1 s\n'):
            self.fails(self.asks_for(results), 'kunit:s: fail: exit=1', suite='kunit')
        self.fails(self.asks_for(self.SUITE + '    1..0\nok 1 s\n'), 'kunit:s: fail: no case ran', suite='kunit')
        self.fails(self.asks_for('KTAP version 1\n1..1\nok 1 s\n'), 'kunit:s: fail: no case ran', suite='kunit')
        # So debugfs shows a suite that never ran.
        self.fails(self.asks_for(self.SUITE + '    1..2\nok 1 s\n'), 'kunit:s: within it: (no result) fail', suite='kunit')

    def test_filter_list_junit(self):
        argv, env = self.command(END, '--list', '--filter', 'one')
        out = subprocess.run(argv, env=env, text=True, stdout=subprocess.PIPE).stdout
        self.assertEqual(out, 'fake-default-kvm kvm:one\n')
        junit = os.path.join(self.dir, 'junit.xml')
        rc, out, _ = self.run_('pass one\nnote begin kvm:two\nresult two "not ok 1 selftests: kvm: two # exit=1"\n'
                               'note end kvm:two 1\n' + END, '--junit', junit)
        root = ET.parse(junit).getroot()
        self.assertEqual((root.get('tests'), root.get('failures')), ('2', '1'))

    def test_arguments_and_timeout(self):
        show = 'cpio -i --quiet --to-stdout job/tests job/setup < "$3" | sed "s/^/# /" >&4\n'
        script = 'note begin kvm:one\n' + show + 'result one "ok 1 selftests: kvm: one"\nnote end kvm:one 0\n' + END
        rc, out, _ = self.run_(script, '-v', '--filter', 'one', '--timeout', '7', '--args', "one=-r 5 -s a'b")
        self.assertEqual(rc, 0, out)
        self.assertIn('# kvm:one 7\n', out)
        self.assertIn('# export KSELFTEST_ONE_ARGS=' + shlex.quote("-r 5 -s a'b") + '\n', out)
        for bad in ('one', 'three=-r 5'):
            rc, out, _ = self.run_(script, '--args', bad)
            self.assertEqual(rc, 2, out)
            self.assertIn(f'--args {bad}: want', out)

    def test_interrupt_leaves_nothing(self):
        argv, env = self.command('sleep 1000 &\necho "$! $$" >&4\nwait\n')
        p = subprocess.Popen(argv + ['-v'], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in p.stdout:
            m = re.search(r'\| (\d+) (\d+)$', line)
            if m:
                break
        p.send_signal(signal.SIGINT)
        p.stdout.read()
        p.stdout.close()
        self.assertEqual(p.wait(), 130)
        for pid in m.groups():
            end = time.monotonic() + 10
            while time.monotonic() < end:       # until init has reaped it
                try:
                    with open(f'/proc/{pid}/stat') as f:
                        if f.read().rpartition(')')[2].split()[0] == 'Z':
                            break
                except FileNotFoundError:
                    break
                time.sleep(0.01)
            else:
                self.fail(f'{pid} is still there')

    def test_two_at_once(self):
        argv, env = self.command('pass one\npass two\n' + END)
        ps = [subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE) for _ in range(4)]
        outs = [p.communicate()[0] for p in ps]
        self.assertEqual([p.returncode for p in ps], [0] * 4, outs)


if __name__ == '__main__':
    unittest.main()
