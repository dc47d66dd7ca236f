# SPDX-License-Identifier: GPL-2.0-only
"""Planted bugs: found by the tests that they name and by no other, or said not to be."""

import os
import shutil
import subprocess
import sys
import unittest

import test_runner

SOURCE = 'virt/kvm/pfncache.c'
LINES = [f'int line_{i};\n' for i in range(40)]

# A "kernel" is its source, a build is a copy.
KERNEL = '''#!/bin/sh
cd $KVM_GPC_BUILD
case $1 in series) src=linux out=series-$2 ;; *) src=planted/linux out=planted/$1-$2 ;; esac
mkdir -p $out
! grep -q no_build $src/virt/kvm/pfncache.c && cp $src/virt/kvm/pfncache.c $out/bzImage
'''
IMAGE = '''#!/bin/sh
cd $KVM_GPC_BUILD
mkdir -p series-$2/image
cd series-$2/image
touch common.cpio kvm.cpio
printf 'kvm:one\\nkvm:two\\n' > tests
'''
# What the machine does is said in the source of its kernel.
MACHINE = test_runner.PRELUDE + '''
has() { grep -q "$1" "$kernel"; }
kernel=$4
! has once || ! mkdir $KVM_GPC_BUILD/first 2>/dev/null || kernel=/dev/null
! has if_args || cpio -i --quiet --to-stdout job/setup < "$3" | grep -q 'ONE_ARGS=-x$' || kernel=/dev/null
! has if_given || has is_given || kernel=/dev/null
for t in one two; do
	cpio -i --quiet --to-stdout job/tests < "$3" | grep -q "^kvm:$t " || continue
	note begin kvm:$t
	if has splat_$t; then echo "[    2.0] BUG: KASAN: something" >&3; fi
	if has crash_$t; then exit 3; fi
	printf 'TAP version 13\\n1..1\\n# selftests: kvm: %s\\n# TAP version 13\\n# 1..2\\n' $t >&4
	word=ok
	for c in a b; do
		if has fail_${t}_$c; then word='not ok'; echo "# not ok 1 $c" >&4
		elif has skip_${t}_$c; then echo "# ok 1 $c # SKIP x" >&4
		else echo "# ok 1 $c" >&4; fi
	done
	echo "$word 1 selftests: kvm: $t" >&4
	note end kvm:$t 0
done
''' + test_runner.END


class Planted(test_runner.Machine):
    def setUp(self):
        super().setUp()
        harness = os.path.join(self.dir, 'harness')
        shutil.copytree(test_runner.HARNESS, harness,
                        ignore=shutil.ignore_patterns('tests', 'planted', '__pycache__'))
        self.patches = os.path.join(harness, 'planted')
        os.mkdir(self.patches)
        for name, script in (('kernel', KERNEL), ('image', IMAGE)):
            path = os.path.join(harness, name)
            with open(path, 'w') as f:
                f.write(script)
            os.chmod(path, 0o755)
        self.expected = os.path.join(harness, 'expected')
        with open(self.expected, 'w'):
            pass
        self.wrapper = os.path.join(self.dir, 'wrapper.py')
        with open(self.wrapper, 'w') as f:
            f.write(test_runner.WRAPPER.format(harness=harness, kunit=self.kunit, main='planted'))
        fake = os.path.join(self.dir, 'fake')
        with open(fake, 'w') as f:
            f.write(MACHINE)
        self.build = os.path.join(self.dir, 'build')
        self.linux = os.path.join(self.build, 'linux')
        self.env = dict(os.environ, KVM_GPC_BUILD=self.build, FAKE=fake, HOME=self.dir)
        os.makedirs(os.path.join(self.linux, os.path.dirname(SOURCE)))
        self.source(LINES)
        self.git('init', '-q')
        self.git('add', '-A')
        self.git('commit', '-qm', 'x')

    def git(self, *argv):
        subprocess.run(['git', '-c', 'user.name=A', '-c', 'user.email=a@example.org', *argv],
                       cwd=self.linux, env=self.env, check=True)

    def source(self, lines):
        with open(os.path.join(self.linux, SOURCE), 'w') as f:
            f.writelines(lines)

    def patch(self, path, head, what, file=SOURCE, line=20, old=None):
        """A patch that says WHAT to the machine."""
        with open(path, 'w') as f:
            f.write(f'{head}\n\ndiff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n'
                    f'@@ -{line},3 +{line},3 @@\n {LINES[line - 1]}-{old or LINES[line]}+{what}\n {LINES[line + 1]}')

    def bug(self, name, what, *fields, about='A line is another one.', path=SOURCE, old=LINES[20]):
        fields = fields or ('Plan: x:default:kvm', 'Found-by: kvm:one.a')
        self.patch(os.path.join(self.patches, name + '.patch'), '\n'.join(fields) + f'\n\n{about}',
                   what, path, old=old)

    def given(self, name, what):
        path = os.path.join(os.path.dirname(self.patches), 'given')
        os.makedirs(path, exist_ok=True)
        self.patch(os.path.join(path, name + '.patch'), 'It is given.', what, line=10)

    def plant(self, *argv):
        r = subprocess.run([sys.executable, self.wrapper, *argv], env=self.env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        return r.returncode, r.stdout

    def found(self, *argv, n=1):
        rc, out = self.plant(*argv)
        self.assertEqual(rc, 0, out)
        self.assertIn(f'{n} of {n} planted bugs found', out)
        return out

    def not_found(self, *says, n=0, of=1):
        rc, out = self.plant()
        self.assertEqual(rc, 1, out)
        for s in (*says, f'{n} of {of} planted bugs found'):
            self.assertIn(s, out)
        return out

    def malformed(self, says):
        rc, out = self.plant()
        self.assertEqual(rc, 2, out)
        self.assertIn(says, out)

    def test_found(self):
        self.bug('x', 'fail_one_a')
        self.assertIn('found      x  x:default:kvm  1 of 1', self.found())
        # The tree is as before, for the next one.
        self.bug('y', 'fail_one_b', 'Plan: x:default:kvm', 'Found-by: kvm:one.b')
        self.found(n=2)

    def test_two_cases(self):
        self.bug('x', 'fail_one_a fail_one_b', 'Plan: x:default:kvm', 'Found-by: kvm:one.a',
                 'Found-by: kvm:one.b')
        self.found()
        self.bug('x', 'fail_one_a', 'Plan: x:default:kvm', 'Found-by: kvm:one.a', 'Found-by: kvm:one.b')
        self.not_found('seen: fail of kvm:one.a')

    def test_not_found(self):
        self.bug('x', 'harmless')
        self.bug('y', 'fail_one_a')
        self.not_found('NOT FOUND  x  x:default:kvm  0 of 1', 'seen: nothing', n=1, of=2)

    def test_another_case(self):
        self.bug('x', 'fail_one_b')
        self.not_found('seen: fail of kvm:one.b')
        self.bug('x', 'fail_one_a fail_one_b')
        self.not_found('seen: fail of kvm:one.a, fail of kvm:one.b')

    def test_other_tests_are_not_run(self):
        self.bug('x', 'fail_one_a fail_two_a')
        self.found()

    def test_splat(self):
        self.bug('x', 'splat_one', 'Plan: x:default:kvm', 'Found-by: kvm:one', 'Seen-as: splat')
        self.found()
        self.bug('x', 'splat_one fail_one_a', 'Plan: x:default:kvm', 'Found-by: kvm:one', 'Seen-as: splat')
        self.not_found('seen: fail of kvm:one.a, splat of kvm:one')
        self.bug('x', 'splat_one fail_one_a', 'Plan: x:default:kvm', 'Found-by: kvm:one.a',
                 'Seen-as: splat fail')
        self.found()

    def test_crash(self):
        self.bug('x', 'crash_one', 'Plan: x:default:kvm', 'Found-by: kvm:one', 'Seen-as: crash')
        self.found()
        self.bug('x', 'crash_one')
        self.not_found('seen: crash of kvm:one')

    def test_each_run(self):
        self.bug('x', 'fail_one_a', 'Plan: x:default:kvm', 'Found-by: kvm:one.a', 'Runs: 3')
        self.assertIn('3 of 3', self.found())
        self.bug('x', 'fail_one_a once', 'Plan: x:default:kvm', 'Found-by: kvm:one.a', 'Runs: 3')
        self.not_found('2 of 3', 'seen: nothing')

    def test_args(self):
        fields = ['Plan: x:default:kvm', 'Found-by: kvm:one.a', 'Args: one=-x']
        self.bug('x', 'fail_one_a if_args', *fields)
        self.found()
        self.bug('x', 'fail_one_a if_args', *fields[:2])
        self.not_found('seen: nothing')

    def test_given(self):
        fields = ['Plan: x:default:kvm', 'Found-by: kvm:one.a']
        self.bug('x', 'fail_one_a if_given', 'Given: it', *fields)
        self.malformed('cannot read "Given: it"')
        self.given('it', 'is_given')
        self.bug('y', 'fail_one_a', *fields)
        self.found(n=2)
        self.bug('x', 'fail_one_a if_given', *fields)
        self.not_found('NOT FOUND  x', 'seen: nothing', n=1, of=2)
        self.bug('x', 'harmless', 'Given: it', *fields)
        self.given('it', 'fail_one_a')
        self.not_found('NOT FOUND  x', 'without it: fail of kvm:one.a', n=1, of=2)

    def test_expected_skip(self):
        self.source([*LINES[:30], 'int skip_one_b;\n', *LINES[31:]])
        self.git('commit', '-qam', 'x')
        self.bug('x', 'fail_one_a')
        self.not_found('without it: skip of kvm:one.b')
        with open(self.expected, 'w') as f:
            f.write('* * * skip kvm:one.b -- x\n')
        self.found()

    def test_two_plans(self):
        fields = ['Plan: x:default:kvm', 'Found-by: kvm:one.a', 'Plan: x:default:kvm', 'Found-by: kvm:two.b',
                  'Runs: 2']
        self.bug('x', 'fail_one_a fail_two_b', *fields)
        out = self.found()
        self.assertIn('found      x  x:default:kvm  1 of 1', out)
        self.assertIn('found      x  x:default:kvm  2 of 2', out)
        self.bug('x', 'fail_one_a', *fields)
        out = self.not_found('NOT FOUND  x  x:default:kvm  0 of 2', 'seen: nothing')
        self.assertIn('found      x  x:default:kvm  1 of 1', out)
        self.bug('x', 'fail_one_a', *fields[:3])
        self.malformed('want "Plan:')

    def test_fails_without(self):
        self.source([*LINES[:30], 'int fail_one_a;\n', *LINES[31:]])
        self.git('commit', '-qam', 'x')
        self.bug('x', 'fail_one_a')
        self.bug('y', 'fail_two_a', 'Plan: x:default:kvm', 'Found-by: kvm:two.a')
        self.not_found('NOT FOUND  x', 'without it: fail of kvm:one.a', n=1, of=2)

    def test_what_is_not_committed(self):
        self.source([*LINES[:30], 'int fail_one_a;\n', *LINES[31:]])
        self.bug('x', 'fail_one_a')
        self.not_found('without it: fail of kvm:one.a')
        self.source([*LINES[:20], 'int other;\n', *LINES[21:]])
        self.not_found('does not apply: patch failed: virt/kvm/pfncache.c:20')

    def test_does_not_apply(self):
        self.bug('x', 'fail_one_a', old='int other;\n')
        self.not_found('does not apply: patch failed: virt/kvm/pfncache.c:20')

    def test_does_not_build(self):
        self.bug('x', 'no_build')
        self.not_found('does not build')

    def test_only_the_kernel(self):
        path = os.path.join(self.linux, 'tools/x.c')
        os.makedirs(os.path.dirname(path))
        shutil.copy(os.path.join(self.linux, SOURCE), path)
        self.git('add', '-A')
        self.git('commit', '-qm', 'x')
        self.bug('x', 'fail_one_a', path='tools/x.c')
        self.not_found('is not in the kernel')

    def test_only(self):
        self.bug('x', 'fail_one_a')
        self.bug('y', 'harmless')
        self.assertNotIn('y  x:default', self.found('--only', '^x'))
        self.assertEqual(self.plant('--list'), (0, 'x x:default:kvm - kvm:one.a\ny x:default:kvm - kvm:one.a\n'))
        rc, out = self.plant('--only', 'z')
        self.assertEqual(rc, 2, out)

    def test_posting(self):
        self.bug('x', 'fail_one_a')
        for posting, file, line in (('01-near', 'x/one.c', ' TEST(a)'), ('02-far', 'x/two.c', '+TEST(a)'),
                                    ('03-here', 'x/one.c', '+TEST(a)'), ('04-late', 'x/one.c', '+TEST(a)')):
            os.makedirs(os.path.join(self.dir, 'patches', posting))
            with open(os.path.join(self.dir, 'patches', posting, '0001-x.patch'), 'w') as f:
                f.write(f'Subject: x\n\ndiff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n'
                        f'@@ -1 +1 @@\n{line}\n')
        listed = (0, 'x x:default:kvm here kvm:one.a\n')
        self.assertEqual(self.plant('--list', '--posting', 'here'), listed)
        self.assertEqual(self.plant('--list', '--posting', '03-here'), listed)
        for other in ('near', 'far', 'late'):
            rc, out = self.plant('--posting', other)
            self.assertEqual(rc, 2, out)

    def test_no_such_test(self):
        self.bug('x', 'fail_one_a', 'Plan: x:default:kvm', 'Found-by: kvm:three.a')
        self.malformed('x:default:kvm has no kvm:three')

    def test_malformed(self):
        for fields, says in ((('Plan: x:default:kvm',), 'want "Plan:'),
                             (('Found-by: kvm:one',), 'cannot read "Found-by: kvm:one"'),
                             (('Plan: kvm', 'Found-by: kvm:one'), 'cannot read "Plan: kvm"'),
                             (('Plan: x:default:kvm', 'Found-by: one'), 'cannot read "Found-by: one"'),
                             (('Plan: x:default:kvm', 'Found-by: kvm:one', 'Runs: 0'), 'cannot read "Runs: 0"'),
                             (('Plan: x:default:kvm', 'Found-by: kvm:one', 'Seen-as: smoke'), 'cannot read "Seen-as'),
                             (('Plan: x:default:kvm', 'Found-by: kvm:one', 'Times: 3'), 'cannot read "Times')):
            self.bug('x', 'fail_one_a', *fields)
            self.malformed(says)
        self.bug('x', 'fail_one_a', about='')
        self.malformed('does not say what is wrong')


if __name__ == '__main__':
    unittest.main()
