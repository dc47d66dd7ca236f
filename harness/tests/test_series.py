# SPDX-License-Identifier: GPL-2.0-only
"""base, tree, export, lint, post: planted faults must be named, good input passes."""

import os
import shutil
import subprocess
import tempfile
import unittest

HARNESS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(HARNESS)

CODE = ''.join(f'int line_{i};\n' for i in range(40))

# What checkpatch.pl takes for a kernel tree.
KERNEL_TREE = {
    'Makefile': 'VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n',
    'virt/kvm/pfncache.c': '// SPDX-License-Identifier: GPL-2.0-only\n' + CODE,
    'MAINTAINERS': 'M\n', 'COPYING': '', 'CREDITS': '', 'Kbuild': '', 'README': '',
    'Documentation/process/x.rst': '', 'arch/Kconfig': '', 'include/Kbuild': '',
    'drivers/Makefile': '', 'fs/Makefile': '', 'init/Makefile': '', 'ipc/Makefile': '',
    'kernel/Makefile': '', 'lib/Makefile': '',
}

COVER = """KVM: pfncache: Do something

Stands-on: {on}
For: review

Why: A test of the harness wants it.
What:
It does.
Basis: What stands above.
Tested: All of it.
Figures: None.
Prior art: None.
Review: Nothing.
"""


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f:
        f.write(text)


def read(path):
    with open(path) as f:
        return f.read()


class Sandbox(unittest.TestCase):
    """A clone of the repository in small: its harness, a base of a few files."""

    @classmethod
    def setUpClass(cls):
        # checkpatch itself is the base's.
        out = subprocess.run([os.path.join(HARNESS, 'base')], stdout=subprocess.PIPE, text=True, check=True)
        cls.scripts = {}
        for name in ('checkpatch.pl', 'spelling.txt', 'const_structs.checkpatch', 'get_maintainer.pl'):
            cls.scripts['scripts/' + name] = subprocess.run(
                ['git', '-c', 'safe.directory=*', '--git-dir', out.stdout.strip(), 'cat-file', 'blob',
                 'HEAD:scripts/' + name], stdout=subprocess.PIPE, text=True, check=True).stdout

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix='kvm-gpc-test.')
        self.addCleanup(shutil.rmtree, self.dir)
        self.top = os.path.join(self.dir, 'top')
        shutil.copytree(HARNESS, os.path.join(self.top, 'harness'),
                        ignore=shutil.ignore_patterns('tests', 'planted', 'given', '__pycache__'))
        self.kernel = os.path.join(self.dir, 'kernel')
        for name, text in {**KERNEL_TREE, **self.scripts}.items():
            write(os.path.join(self.kernel, name), text)
        self.env = dict(os.environ, KERNEL=self.kernel, HOME=self.dir,
                        KVM_GPC_CACHE=os.path.join(self.dir, 'cache'))
        for name in ('KVM_GPC_BUILD', 'MIRROR', 'FORCE', 'XDG_CACHE_HOME'):
            self.env.pop(name, None)
        write(os.path.join(self.top, 'series'), '')
        os.mkdir(os.path.join(self.top, 'patches'))
        for name in ('churn', 'wording'):
            write(os.path.join(self.top, 'harness', name), '')

    def sh(self, *argv, cwd=None, **env):
        return subprocess.run(argv, cwd=cwd or self.top, env=dict(self.env, **env), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ok(self, *argv, **kw):
        r = self.sh(*argv, **kw)
        self.assertEqual(r.returncode, 0, r.stdout)
        return r.stdout

    def fails(self, *argv, says, **kw):
        r = self.sh(*argv, **kw)
        self.assertNotEqual(r.returncode, 0, r.stdout)
        for s in [says] if isinstance(says, str) else says:
            self.assertIn(s, r.stdout)
        return r.stdout

    def git(self, *argv):
        return self.ok('git', '-c', 'user.name=A', '-c', 'user.email=a@example.org', *argv,
                       cwd=os.path.join(self.top, 'build/linux'))

    def make_series(self):
        """Two postings of a patch each: a change, and a new file."""
        self.ok('harness/tree')
        linux = os.path.join(self.top, 'build/linux')
        path = os.path.join(linux, 'virt/kvm/pfncache.c')
        write(path, read(path).replace('line_20;', 'line_twenty;'))
        self.git('commit', '-qam', 'KVM: pfncache: Rename a line\n\nName the line by a word.\n')
        self.git('branch', 'posting/01-one')
        write(os.path.join(linux, 'MAINTAINERS'), 'M\nF:\tvirt/kvm/new.c\n')
        write(os.path.join(linux, 'virt/kvm/new.c'),
              '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n')
        self.git('add', '-A')
        self.git('commit', '-qm', 'KVM: pfncache: Add a file\n\nAdd a file for a test of the harness.\n')
        self.git('branch', 'posting/02-two')
        self.ok('harness/export')
        self.patch = [os.path.join(self.top, 'patches', n)
                      for n in read(os.path.join(self.top, 'series')).split('\n') if n and n[0] != '#']
        self.cover = [os.path.join(os.path.dirname(p), 'cover') for p in self.patch]
        for cover, on in zip(self.cover, ('base', 'one')):
            write(cover, COVER.format(on=on))

    def amend(self, *argv, posting='02-two'):
        """The last commit anew, and the branch with it."""
        self.git('commit', '-q', '--amend', *argv)
        self.git('branch', '-f', 'posting/' + posting)

    def commit(self, path, text, message, posting='02-two'):
        """Another patch, at the end of a posting."""
        write(os.path.join(self.top, 'build/linux', path), text)
        self.git('add', '-A')
        self.git('commit', '-qm', message)
        self.git('branch', '-f', 'posting/' + posting)
        self.ok('harness/export')


class Lint(Sandbox):
    def setUp(self):
        super().setUp()
        self.make_series()

    def test_clean(self):
        self.assertIn('2 patches in 2 postings are clean', self.ok('harness/lint'))

    def test_change_in_kernel_folder(self):
        with open(os.path.join(self.top, 'virt/kvm/new.c'), 'a') as f:
            f.write('int planted;\n')
        self.fails('harness/lint', says=['kernel folders and patches disagree', 'virt/kvm/new.c'])

    def test_file_in_kernel_folder_only(self):
        write(os.path.join(self.top, 'arch/x86/kvm/planted.c'), '')
        self.fails('harness/lint', says=['kernel folders and patches disagree', 'arch'])

    def test_file_in_patches_only(self):
        os.unlink(os.path.join(self.top, 'virt/kvm/new.c'))
        self.fails('harness/lint', says=['kernel folders and patches disagree', 'new.c'])

    def test_mode_in_kernel_folder(self):
        os.chmod(os.path.join(self.top, 'virt/kvm/new.c'), 0o755)
        self.fails('harness/lint', says=['execute permission differs', 'new.c'])

    def test_unlisted_patch(self):
        shutil.copy(self.patch[0], os.path.join(self.top, 'patches/01-one/0009-planted.patch'))
        self.fails('harness/lint', says='patches/01-one/0009-planted.patch is not in series')

    def test_absent_patch(self):
        with open(os.path.join(self.top, 'series'), 'a') as f:
            f.write('02-two/0003-gone.patch\n')
        self.fails('harness/lint', says='02-two/0003-gone.patch, which is not in patches/')

    def test_broken_hunk(self):
        write(self.patch[0], read(self.patch[0]).replace(' int line_19;', ' int line_nineteen;'))
        name = os.path.basename(self.patch[0])
        self.fails('harness/lint', says=[f'{name} does not apply', 'virt/kvm/pfncache.c'])
        shutil.rmtree(os.path.join(self.top, 'build'))
        self.fails('harness/tree', says=[f'{name} does not apply', 'virt/kvm/pfncache.c'])
        self.assertFalse(os.path.exists(os.path.join(self.top, 'build/linux')))

    def test_fuzz(self):
        """A hunk that patch(1) would take with an offset and fuzz."""
        write(self.patch[0], read(self.patch[0]).replace(' int line_17;\n', ' int other;\n'))
        self.fails('harness/lint', says='does not apply')

    def test_edited_by_hand(self):
        write(self.patch[0], read(self.patch[0]).replace(' | 2 +-', ' | 3 +--'))
        self.fails('harness/lint', says='edited by hand')

    def test_checkpatch(self):
        path = os.path.join(self.top, 'build/linux/virt/kvm/new.c')
        write(path, read(path) + 'int spaced=1 ;\n')
        self.amend('-a', '--no-edit')
        self.ok('harness/export')
        self.fails('harness/lint', says=['patches/02-two/0002-', 'checkpatch --strict is not content'])

    def test_changelog(self):
        self.amend('-m', 'pfncache: add a file\n\nThis patch adds a file.\n')
        self.ok('harness/export')
        self.fails('harness/lint', says=['Capitalised imperative', 'without pronouns'])

    def lint_commit(self, path, text, message, says):
        self.commit(path, text, message)
        return self.fails('harness/lint', says=says)

    def test_selftest_touches_the_kernel(self):
        self.lint_commit('virt/kvm/new.c', '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\nint other;\n',
                         'KVM: selftests: Test a line\n\nTest it.\n',
                         says=['virt/kvm/new.c', 'besides tools/testing/selftests/'])

    def test_document_touches_the_kernel(self):
        self.lint_commit('virt/kvm/new.c', '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\nint other;\n',
                         'Documentation: KVM: Describe a line\n\nDescribe it.\n',
                         says=['virt/kvm/new.c', 'besides Documentation/'])

    def test_large_for_stable(self):
        lines = ''.join(f'int more_{i};\n' for i in range(101))
        self.lint_commit('virt/kvm/new.c', '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n' + lines,
                         'KVM: pfncache: Add lines\n\nAdd them.\n\nCc: stable@vger.kernel.org\n',
                         says='101 changed lines are too many for stable')

    def test_words_and_columns(self):
        text = '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n'
        more = ('/* For those that sleep. */\nint those;\n'
                f'/* {"long " * 16}*/\nconst char *who = "/* nobody */";\n')
        out = self.lint_commit('virt/kvm/new.c', text + more,
                               'KVM: pfncache: Add lines\n\nTell whoever asks.\n',
                               says=['Add-lines: 2 words, harness/wording allows 0', 'new.c:3: /* For those',
                                     'changelog: Tell whoever', 'Add-lines: 1 columns', 'new.c:5: /* long'])
        self.assertNotIn('nobody', out)
        wording = os.path.join(self.top, 'harness/wording')
        write(wording, self.ok('bash', '-c', 'harness/lint --wording 2>/dev/null'))
        self.assertEqual(read(wording).split('\n')[:2], ['columns 1 KVM-pfncache-Add-lines', 'words 2 KVM-pfncache-Add-lines'])
        self.assertNotIn('harness/wording allows', self.sh('harness/lint').stdout)
        write(wording, read(wording).replace('words 2', 'words 3'))
        self.fails('harness/lint', says='allows KVM-pfncache-Add-lines 3 words, there are 2')

    def test_churn(self):
        self.commit('virt/kvm/new.c', '// SPDX-License-Identifier: GPL-2.0-only\nint other_line;\n',
                    'KVM: pfncache: Name another line\n\nName it.\n')
        self.ok('harness/lint')     # one of four: the SPDX line and MAINTAINERS stay
        self.commit('virt/kvm/new.c', '// SPDX-License-Identifier: GPL-2.0\nint third_line;\n',
                    'KVM: pfncache: Name a third line\n\nName it.\n')
        self.fails('harness/lint', says='KVM-pfncache-Add-a-file: later patches delete 2 of the 3 lines')
        path = os.path.join(self.top, 'harness/churn')
        write(path, '^KVM-pfncache-Add-a-file$ -- a test\n^KVM-pfncache-Name-another -- a test\n')
        self.ok('harness/lint')
        write(path, read(path) + '^KVM-pfncache-Rename -- nothing\n')
        self.fails('harness/lint', says='harness/churn has "^KVM-pfncache-Rename", of which')

    def test_a_move_is_no_churn(self):
        lines = ''.join(f'int moving_line_of_a_block_{i};\n' for i in range(9))
        new = '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n'
        self.commit('virt/kvm/new.c', new + lines, 'KVM: pfncache: Add lines\n\nAdd them.\n')
        write(os.path.join(self.top, 'build/linux/virt/kvm/new.c'), new)
        path = 'virt/kvm/pfncache.c'
        self.commit(path, read(os.path.join(self.top, 'build/linux', path)) + lines,
                    'KVM: pfncache: Move lines\n\nMove them.\n')
        self.assertIn('4 patches in 2 postings are clean', self.ok('harness/lint'))

    def test_cover(self):
        good = read(self.cover[1])
        for old, new, says in (
                ('Review: Nothing.\n', '', '02-two/cover has not, or has nothing in: Review:'),
                ('Figures: None.', 'Figures:', '02-two/cover has not, or has nothing in: Figures:'),
                ('For: review', 'For: fun', "want 'For: stable'"),
                ('Stands-on: one', 'Stands-on: two', 'no posting before it is two'),
                ('Stands-on: one', 'Stands-on:', "want 'Stands-on: base'"),
                ('It does.', 'It does.\n' * 80, '93 lines, 80 are the limit'),
                ('It does.', 'It does what nobody wants.', 'two/cover: 1 words'),
                ('KVM: pfncache: Do', 'Do', "want 'KVM: <topic>")):
            with self.subTest(says):
                self.assertIn(old, good)
                write(self.cover[1], good.replace(old, new))
                self.fails('harness/lint', says=says)
        os.unlink(self.cover[1])
        self.fails('harness/lint', says='02-two has no cover')

    def test_too_many_patches(self):
        lines = '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n'
        for i in range(18):
            lines += f'int more_{i};\n'
            write(os.path.join(self.top, 'build/linux/virt/kvm/new.c'), lines)
            self.git('commit', '-qam', f'KVM: pfncache: Add line {i}\n\nAdd it.\n')
        self.git('branch', '-f', 'posting/02-two')
        self.ok('harness/export')
        self.fails('harness/lint', says='02-two has 19 patches, 18 are the limit')

    def test_readme(self):
        path = os.path.join(self.top, 'README')
        for name, text in (('guest/xen-variants', 'a:\nb:\ncpus40-all:\n'), ('qemu.patch', 'hw/x: a\nhw/y: b\n')):
            write(os.path.join(self.top, 'harness', name), text)
        text = '2 patches in\n2 postings, two boots of the\n Xen guest, two things changed'
        write(path, text)
        self.ok('harness/lint')
        write(path, text.replace('two boots', 'three boots'))
        self.fails('harness/lint', says="README: want 'two boots")

    def test_fixes_in_history(self):
        """With a base that has a history, that is what Fixes: is looked up in."""
        for cmd in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'KVM: pfncache: Begin'],
                    ['commit', '-q', '--allow-empty', '-m', 'Linux']):
            self.ok('git', '-c', 'user.name=A', '-c', 'user.email=a@b', *cmd, cwd=self.kernel)
        shutil.rmtree(os.path.join(self.top, 'build'))
        fixed = self.ok('git', 'rev-parse', '--short=12', 'HEAD^', cwd=self.kernel).strip()
        self.ok('harness/tree')
        self.assertIn('KVM: pfncache: Begin', self.git('blame', '-s', 'base', 'virt/kvm/pfncache.c') and
                      self.git('log', 'base'))
        message = 'KVM: pfncache: Add a file\n\nAdd a file for a test.\n\nFixes: {} ("{}")\n'
        for commit, subject, says in ((fixed, 'KVM: pfncache: Begin', None),
                                      (fixed, 'KVM: pfncache: End', 'checkpatch --strict is not content'),
                                      ('1234567890ab', 'KVM: pfncache: Begin', 'fixes 1234567890ab, which is not')):
            with self.subTest(says):
                self.amend('-m', message.format(commit, subject))
                self.ok('harness/export')
                if says:
                    self.fails('harness/lint', says=says)
                else:
                    self.ok('harness/lint')

    def test_planted(self):
        path = os.path.join(self.top, 'harness/planted/x.patch')
        patch = ('Plan: amd:default:kunit\nFound-by: kunit:s.c\n\nA line is another one.\n\n'
                 '--- a/virt/kvm/pfncache.c\n+++ b/virt/kvm/pfncache.c\n'
                 '@@ -21,3 +21,3 @@\n int line_19;\n-int line_twenty;\n+int planted;\n int line_21;\n')
        write(path, patch)
        self.ok('harness/lint')
        write(path, patch.replace('line_twenty', 'line_20'))
        self.fails('harness/lint', says='harness/planted/x.patch does not apply')
        write(path, patch.replace('Plan:', 'Map:'))
        self.fails('harness/lint', says=['cannot read "Map:', 'harness/planted cannot be read'])
        os.remove(path)
        path = os.path.join(self.top, 'harness/given/x.patch')
        write(path, patch)
        self.ok('harness/lint')
        write(path, patch.replace('line_twenty', 'line_20'))
        self.fails('harness/lint', says='harness/given/x.patch does not apply')


class Export(Sandbox):
    def setUp(self):
        super().setUp()
        self.make_series()

    def product(self):
        files = {}
        for top in ('patches', 'virt', 'series'):
            path = os.path.join(self.top, top)
            for d, _, names in os.walk(path) if os.path.isdir(path) else [(self.top, [], [top])]:
                for n in names:
                    files[os.path.join(d, n)] = read(os.path.join(d, n))
        return files

    def test_folders_hold_what_the_series_adds(self):
        self.assertTrue(os.path.exists(os.path.join(self.top, 'virt/kvm/new.c')))
        self.assertFalse(os.path.exists(os.path.join(self.top, 'virt/kvm/pfncache.c')))

    def test_rewritten_file_is_held(self):
        path = os.path.join(self.top, 'build/linux/virt/kvm/pfncache.c')
        write(path, '// SPDX-License-Identifier: GPL-2.0-only\n' +
              ''.join(f'long other_{i}(void);\n' for i in range(60)))
        self.git('commit', '-qam', 'KVM: pfncache: Write anew\n\nWrite it anew.\n')
        self.git('branch', '-f', 'posting/02-two')
        self.ok('harness/export')
        self.assertEqual(read(os.path.join(self.top, 'virt/kvm/pfncache.c')), read(path))
        self.assertNotIn('disagree', self.sh('harness/lint').stdout)

    def test_bytes_do_not_depend_on_the_user(self):
        before = self.product()
        write(os.path.join(self.dir, '.gitconfig'),
              '[diff]\n\tnoprefix = true\n\talgorithm = patience\n\tcontext = 9\n'
              '[format]\n\tsignature = me\n\tcoverLetter = true\n\tnumbered = true\n'
              '[core]\n\tabbrev = 7\n\tquotePath = false\n[commit]\n\tgpgSign = true\n')
        self.ok('harness/export')
        self.assertEqual(self.product(), before)
        shutil.rmtree(os.path.join(self.top, 'build'))
        self.ok('harness/tree')
        self.ok('harness/export')
        self.assertEqual(self.product(), before)

    def test_refuses_dirty(self):
        write(os.path.join(self.top, 'build/linux/virt/kvm/new.c'), 'int dirty;\n')
        before = self.product()
        self.fails('harness/export', says=['dirty', 'virt/kvm/new.c'])
        self.assertEqual(self.product(), before)

    def test_refuses_no_changelog(self):
        self.amend('-m', 'KVM: pfncache: Add a file')
        self.fails('harness/export', says=['Add a file', 'has no changelog'])

    def test_refuses_sign_off(self):
        self.amend('-m',
                   'KVM: pfncache: Add a file\n\nText.\n\nSigned-off-by: A <a@example.org>')
        self.fails('harness/export', says='is signed off')

    def test_shows_range_diff(self):
        self.amend('-m', 'KVM: pfncache: Add a file\n\nAnother text.\n')
        self.assertIn('Another text.', self.ok('harness/export'))

    def test_folders_and_covers(self):
        self.assertEqual([os.path.relpath(p, self.top) for p in self.patch],
                         ['patches/01-one/0001-KVM-pfncache-Rename-a-line.patch',
                          'patches/02-two/0002-KVM-pfncache-Add-a-file.patch'])
        self.assertEqual(read(os.path.join(self.top, 'series')).split()[:2], ['#', '01-one'])
        # A posting by another number keeps its cover.
        self.git('branch', '-m', 'posting/02-two', 'posting/03-two')
        self.ok('harness/export')
        self.assertEqual(read(os.path.join(self.top, 'patches/03-two/cover')), COVER.format(on='one'))
        self.git('branch', '-m', 'posting/03-two', 'posting/03-three')
        self.fails('harness/export', says='patches/03-two/cover has no posting')

    def test_cut(self):
        self.git('commit', '-q', '--allow-empty', '-m', 'KVM: pfncache: Add nothing\n\nAdd it.\n')
        self.fails('harness/export', says=['these are in no posting', 'Add nothing', 'git branch -f posting/02-two'])
        self.git('branch', 'posting/03-two')
        self.git('branch', '-f', 'posting/02-two', 'series')
        self.fails('harness/export', says='posting/03-two has no patch')
        self.git('branch', '-D', 'posting/03-two')
        self.git('branch', '-f', 'posting/02-two', 'posting/01-one')
        self.git('branch', '-f', 'posting/01-one', 'series')
        self.fails('harness/export', says='posting/02-two does not stand on the one before it')

    def test_rebase_takes_the_branches_along(self):
        write(os.path.join(self.top, 'build/linux/virt/kvm/other.c'), '// SPDX-License-Identifier: GPL-2.0-only\n')
        self.git('add', '-A')
        self.git('commit', '-q', '--fixup', 'posting/01-one')
        self.git('-c', 'sequence.editor=:', 'rebase', '-q', '-i', 'refs/kvm-gpc/base')
        self.ok('harness/export')
        self.assertIn('b/virt/kvm/other.c', read(self.patch[0]))
        self.assertNotIn('other.c', read(self.patch[1]))

    def test_tree_has_the_branches(self):
        shutil.rmtree(os.path.join(self.top, 'build'))
        self.ok('harness/tree')
        self.assertEqual(self.git('log', '-1', '--format=%s', 'posting/01-one').strip(), 'KVM: pfncache: Rename a line')
        self.assertEqual(self.git('rev-parse', 'posting/02-two'), self.git('rev-parse', 'series'))

    def test_tree_keeps_unexported_work(self):
        write(os.path.join(self.top, 'build/linux/virt/kvm/new.c'), 'int work;\n')
        self.assertIn('differs from patches/', self.ok('harness/tree'))
        os.unlink(self.patch[1])
        write(os.path.join(self.top, 'series'), '# 01-one\n01-one/' + os.path.basename(self.patch[0]) + '\n')
        self.fails('harness/tree', says='work that was not exported')
        self.assertEqual(read(os.path.join(self.top, 'build/linux/virt/kvm/new.c')), 'int work;\n')


class Posting(Sandbox):
    """A posting on the base and what it stands on, which is not all that is before it."""

    def setUp(self):
        super().setUp()
        # What get_maintainer.pl takes for a kernel tree, and people.
        write(os.path.join(self.kernel, 'MAINTAINERS'),
              'Maintainers List\n----------------\n\nKVM\nM:\tA B <a@example.org>\nL:\tkvm@example.org\n'
              'F:\tvirt/kvm/\n')
        self.make_series()
        self.commit('virt/kvm/third.c', '// SPDX-License-Identifier: GPL-2.0-only\nint third;\n',
                    'KVM: pfncache: Add a third file\n\nAdd it.\n', posting='03-three')
        self.third = os.path.join(self.top, 'patches/03-three/cover')
        write(self.third, COVER.format(on='01-one'))

    def mails(self, *argv, **env):
        out = self.ok('harness/post', *argv, **env)
        path = os.path.join(self.top, 'build/post', argv[0])
        return out, {n: read(os.path.join(path, n)) for n in sorted(os.listdir(path))}

    def test_tree(self):
        self.ok('harness/tree', 'posting', 'three')
        tree = os.path.join(self.top, 'build/posting/linux')
        self.assertTrue(os.path.exists(os.path.join(tree, 'virt/kvm/third.c')))
        self.assertFalse(os.path.exists(os.path.join(tree, 'virt/kvm/new.c')))
        self.assertIn('line_twenty;', read(os.path.join(tree, 'virt/kvm/pfncache.c')))
        self.ok('harness/tree', 'posting', '01-one')
        self.assertFalse(os.path.exists(os.path.join(tree, 'virt/kvm/third.c')))
        self.fails('harness/tree', 'posting', 'four', says=['no posting four', '03-three'])

    def test_does_not_apply(self):
        path = 'virt/kvm/new.c'
        self.commit(path, read(os.path.join(self.top, 'build/linux', path)) + 'int more;\n',
                    'KVM: pfncache: Add to a file\n\nAdd to it.\n', posting='03-three')
        self.fails('harness/tree', 'posting', 'three', says='03-three/0004-KVM-pfncache-Add-to-a-file.patch does not apply')

    def test_lists(self):
        """Lines next to each other in a list are no conflict."""
        path = 'tools/testing/selftests/kvm/Makefile.kvm'
        self.commit(path, 'a\nz\n', 'KVM: selftests: Add a list\n\nAdd it.\n', posting='04-list')
        self.commit(path, 'a\nfive\nz\n', 'KVM: selftests: Add five\n\nAdd it.\n', posting='05-five')
        self.commit(path, 'a\nfive\nsix\nz\n', 'KVM: selftests: Add six\n\nAdd it.\n', posting='06-six')
        for p, on in (('04-list', 'base'), ('05-five', 'list'), ('06-six', 'list')):
            write(os.path.join(self.top, 'patches', p, 'cover'), COVER.format(on=on))
        self.ok('harness/tree', 'posting', 'six')
        self.assertEqual(read(os.path.join(self.top, 'build/posting/linux', path)), 'a\nsix\nz\n')

    def test_post(self):
        out, mails = self.mails('three')
        self.assertEqual(list(mails), ['0000-cover-letter.patch', '0001-KVM-pfncache-Add-a-third-file.patch', 'recipients'])
        cover, patch, recipients = mails.values()
        for text in ('Subject: [PATCH 0/1] KVM: pfncache: Do something\n', 'To: A B <a@example.org>', 'Cc: kvm@example.org',
                     '\nWhy: A test', 'third.c | 2 ++', '\nbase: v7.3.4\n'):
            self.assertIn(text, cover)
        self.assertEqual(cover.count('prerequisite-patch-id:'), 1)
        for text in ('Stands-on', 'For: review', 'localhost'):
            self.assertNotIn(text, cover)
        self.assertIn('Subject: [PATCH 1/1] KVM: pfncache: Add a third file\n', patch)
        self.assertEqual(recipients, 'To: A B <a@example.org>\nCc: kvm@example.org\n')
        self.assertIn('BASE_COMMIT', out)

    def test_base_commit(self):
        with open(os.path.join(self.top, 'harness/base.conf'), 'a') as f:
            f.write('BASE_COMMIT=' + 40 * '1' + '\n')
        _, mails = self.mails('one')
        self.assertIn('\nbase-commit: ' + 40 * '1' + '\n', mails['0000-cover-letter.patch'])

    def test_security_first(self):
        write(self.third, read(self.third).replace('For: review', 'For: security first'))
        out, mails = self.mails('three')
        self.assertEqual(mails['recipients'], 'To: security@kernel.org\nTo: A B <a@example.org>\n')
        self.assertNotIn('kvm@example.org', mails['0000-cover-letter.patch'])
        self.assertIn('NOT to any list', out)

    def test_discussion(self):
        write(self.third, read(self.third).replace('For: review', 'For: discussion'))
        _, mails = self.mails('three', VERSION='2')
        self.assertIn('[RFC PATCH v2 0/1]', mails['v2-0000-cover-letter.patch'])

    def test_postings(self):
        out = self.ok('harness/postings')
        self.assertRegex(out, r'03-three +1 +\+2 -0 +review +01-one')


class Base(Sandbox):
    def nothing_left(self):
        left = [n for n in os.listdir(os.path.join(self.dir, 'cache/base')) if n != 'lock']
        self.assertEqual(left, [])

    def stub(self, name, script):
        path = os.path.join(self.dir, 'bin', name)
        write(path, '#!/bin/sh\n' + script)
        os.chmod(path, 0o755)

    def archive(self, update='exit 0', madison='7.3.4-1~bpo13+1'):
        """apt as the machine has it, with an archive that is made here."""
        self.env['PATH'] = os.path.join(self.dir, 'bin') + ':' + os.environ['PATH']
        self.env['MIRROR'] = 'http://mirror.invalid/debian'
        self.env['KERNEL'] = ''
        self.stub('apt-get', 'case "$*" in *update*) ' + update + ' ;;\n'
                  '*download*) echo no package > linux-source-7.3_1_all.deb ;; esac\n')
        self.stub('apt-cache', 'case "$*" in *search*) echo linux-source-7.4 - x ;;\n'
                  f'*7.4*) echo "linux-source-7.4 | 7.4.1-1 | x" ;;\n'
                  f'*) for v in {madison}; do echo "linux-source-7.3 | $v | x"; done ;; esac\n')

    def test_no_network(self):
        self.archive(update='echo E: cannot resolve; exit 100')
        self.fails('harness/base', says='no network?')
        self.nothing_left()

    def test_version_gone(self):
        self.archive(madison='7.3.9-1~bpo13+1')
        self.fails('harness/base', says=['gone from the archive', '7.4.1-1', 'KERNEL='])
        self.nothing_left()

    def test_wrong_checksum(self):
        self.archive()
        self.fails('harness/base', says=['checksum', 'is wrong', '703e369ddd4c'])
        self.nothing_left()

    def test_no_mirror(self):
        self.archive()
        self.stub('apt-get', 'exit 0\n')
        self.fails('harness/base', MIRROR='', says='give one as MIRROR=')
        self.nothing_left()

    def test_no_space(self):
        self.stub('df', 'printf "Avail\\n12M\\n"\n')
        self.env['PATH'] = os.path.join(self.dir, 'bin') + ':' + os.environ['PATH']
        self.fails('harness/base', says=['no disk space', '12 MiB free', '1000 MiB are needed'])
        self.nothing_left()

    def test_no_such_kernel(self):
        self.fails('harness/base', KERNEL='/nonexistent', says='no such tarball, folder or git repository')

    def test_not_a_kernel(self):
        os.unlink(os.path.join(self.kernel, 'virt/kvm/pfncache.c'))
        self.fails('harness/base', says='is not a kernel tree')
        self.nothing_left()

    def test_too_old(self):
        write(os.path.join(self.kernel, 'Makefile'), 'VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 3\n')
        self.fails('harness/base', says=['7.3.3', 'needs 7.3.4 or newer'])
        self.nothing_left()

    def test_newer(self):
        write(os.path.join(self.kernel, 'Makefile'), 'VERSION = 7\nPATCHLEVEL = 10\nSUBLEVEL = 0\n')
        self.ok('harness/base')

    def test_tarball_and_git_give_the_same_tree(self):
        trees = set()
        tarball = os.path.join(self.dir, 'k.tar.xz')
        self.ok('tar', '-C', self.dir, '-cJf', tarball, 'kernel')
        for kernel in (self.kernel, tarball):
            repo = self.ok('harness/base', KERNEL=kernel).split()[-1]
            trees.add(self.ok('git', '--git-dir', repo, 'rev-parse', 'HEAD^{tree}'))
        for cmd in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
            self.ok('git', '-c', 'user.name=A', '-c', 'user.email=a@b', *cmd, cwd=self.kernel)
        repo = self.ok('harness/base').split()[-1]
        trees.add(self.ok('git', '--git-dir', repo, 'rev-parse', 'HEAD^{tree}'))
        self.assertEqual(len(trees), 1)

    def test_broken_tarball(self):
        tarball = os.path.join(self.dir, 'k.tar.xz')
        write(tarball, 'no tarball')
        self.fails('harness/base', KERNEL=tarball, says='does not unpack')
        self.nothing_left()


class Kernel(Sandbox):
    """olddefconfig drops what nobody defines; a stub stands for the build."""

    BUILD = '''\
tinyconfig olddefconfig:
	touch $(KCONFIG_CONFIG)
bzImage:
	mkdir -p $(O)/arch/x86/boot/compressed
	echo built > $(O)/arch/x86/boot/compressed/vmlinux.bin.gz
	echo setup %s > $(O)/arch/x86/boot/bzImage
'''

    def stub_build(self, linux, config, image='built'):
        write(os.path.join(linux, 'Makefile'), self.BUILD % image)
        write(os.path.join(linux, 'tools/testing/selftests/kvm/config'), '')
        write(os.path.join(linux, 'scripts/kconfig/merge_config.sh'), '#!/bin/sh\n')
        os.chmod(os.path.join(linux, 'scripts/kconfig/merge_config.sh'), 0o755)
        write(os.path.join(self.top, 'harness/kconfig/default.config'), config)

    def test_missing_option_is_an_error(self):
        self.ok('harness/tree')
        self.stub_build(os.path.join(self.top, 'build/linux'), 'CONFIG_PLANTED=y\n')
        self.fails('harness/kernel', 'series', 'default', says=['dropped', 'CONFIG_PLANTED=y'])

    def test_image_of_another_build_is_an_error(self):
        self.ok('harness/tree', 'base')
        self.stub_build(os.path.join(self.top, 'build/base/linux'), '', image='built')
        self.ok('harness/kernel', 'base', 'default')
        self.stub_build(os.path.join(self.top, 'build/base/linux'), '', image='other')
        self.fails('harness/kernel', 'base', 'default', says='does not hold the kernel that was built')

    def test_option_of_the_series(self):
        """One that a patch adds may be missing before that patch, but not after it."""
        self.ok('harness/tree')
        linux = os.path.join(self.top, 'build/linux')
        write(os.path.join(linux, 'virt/kvm/Kconfig'), 'config SOWN\n\tbool\n')
        self.git('add', '-A')
        self.git('commit', '-qm', 'KVM: pfncache: Add an option\n\nAdd an option for a test of the harness.\n')
        self.git('branch', 'posting/01-option')
        self.ok('harness/export')
        self.ok('harness/tree', 'base')
        self.stub_build(os.path.join(self.top, 'build/base/linux'), 'CONFIG_SOWN=y\n')
        self.assertIn('without CONFIG_SOWN', self.ok('harness/kernel', 'base', 'default'))
        self.stub_build(os.path.join(self.top, 'build/base/linux'), 'CONFIG_SOWN=y\nCONFIG_PLANTED=y\n')
        self.fails('harness/kernel', 'base', 'default', says=['dropped', 'CONFIG_PLANTED=y'])
        self.stub_build(linux, 'CONFIG_SOWN=y\n')
        self.fails('harness/kernel', 'series', 'default', says=['dropped', 'CONFIG_SOWN=y'])


if __name__ == '__main__':
    unittest.main()
