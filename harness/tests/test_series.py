# SPDX-License-Identifier: GPL-2.0-only
"""base, tree, export and lint: planted faults must be named, good input passes."""

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
        for name in ('checkpatch.pl', 'spelling.txt', 'const_structs.checkpatch'):
            cls.scripts['scripts/' + name] = subprocess.run(
                ['git', '-c', 'safe.directory=*', '--git-dir', out.stdout.strip(), 'cat-file', 'blob',
                 'HEAD:scripts/' + name], stdout=subprocess.PIPE, text=True, check=True).stdout

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix='kvm-gpc-test.')
        self.addCleanup(shutil.rmtree, self.dir)
        self.top = os.path.join(self.dir, 'top')
        shutil.copytree(HARNESS, os.path.join(self.top, 'harness'),
                        ignore=shutil.ignore_patterns('tests', 'planted', '__pycache__'))
        self.kernel = os.path.join(self.dir, 'kernel')
        for name, text in {**KERNEL_TREE, **self.scripts}.items():
            write(os.path.join(self.kernel, name), text)
        self.env = dict(os.environ, KERNEL=self.kernel, HOME=self.dir,
                        KVM_GPC_CACHE=os.path.join(self.dir, 'cache'))
        for name in ('KVM_GPC_BUILD', 'MIRROR', 'FORCE', 'XDG_CACHE_HOME'):
            self.env.pop(name, None)
        write(os.path.join(self.top, 'series'), '')
        os.mkdir(os.path.join(self.top, 'patches'))

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
        """Two patches: a change, and a new file."""
        self.ok('harness/tree')
        linux = os.path.join(self.top, 'build/linux')
        path = os.path.join(linux, 'virt/kvm/pfncache.c')
        write(path, read(path).replace('line_20;', 'line_twenty;'))
        self.git('commit', '-qam', 'KVM: pfncache: Rename a line\n\nName the line by a word.\n')
        write(os.path.join(linux, 'MAINTAINERS'), 'M\nF:\tvirt/kvm/new.c\n')
        write(os.path.join(linux, 'virt/kvm/new.c'),
              '// SPDX-License-Identifier: GPL-2.0-only\nint new_line;\n')
        self.git('add', '-A')
        self.git('commit', '-qm', 'KVM: pfncache: Add a file\n\nAdd a file for a test of the harness.\n')
        self.ok('harness/export')
        self.patch = [os.path.join(self.top, 'patches', n)
                      for n in read(os.path.join(self.top, 'series')).split()]


class Lint(Sandbox):
    def setUp(self):
        super().setUp()
        self.make_series()

    def test_clean(self):
        self.assertIn('2 patches are clean', self.ok('harness/lint'))

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
        shutil.copy(self.patch[0], os.path.join(self.top, 'patches/0009-planted.patch'))
        self.fails('harness/lint', says='patches/0009-planted.patch is not in series')

    def test_absent_patch(self):
        with open(os.path.join(self.top, 'series'), 'a') as f:
            f.write('0003-gone.patch\n')
        self.fails('harness/lint', says='0003-gone.patch, which is not in patches/')

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
        self.git('commit', '-q', '-a', '--amend', '--no-edit')
        self.ok('harness/export')
        self.fails('harness/lint', says=['patches/0002-', 'checkpatch --strict is not content'])

    def test_changelog(self):
        self.git('commit', '-q', '--amend', '-m', 'pfncache: add a file\n\nThis patch adds a file.\n')
        self.ok('harness/export')
        self.fails('harness/lint', says=['Capitalised imperative', 'without pronouns'])


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
        self.git('commit', '-q', '--amend', '-m', 'KVM: pfncache: Add a file')
        self.fails('harness/export', says=['Add a file', 'has no changelog'])

    def test_refuses_sign_off(self):
        self.git('commit', '-q', '--amend', '-m',
                 'KVM: pfncache: Add a file\n\nText.\n\nSigned-off-by: A <a@example.org>')
        self.fails('harness/export', says='is signed off')

    def test_shows_range_diff(self):
        self.git('commit', '-q', '--amend', '-m', 'KVM: pfncache: Add a file\n\nAnother text.\n')
        self.assertIn('Another text.', self.ok('harness/export'))

    def test_tree_keeps_unexported_work(self):
        write(os.path.join(self.top, 'build/linux/virt/kvm/new.c'), 'int work;\n')
        self.assertIn('differs from patches/', self.ok('harness/tree'))
        os.unlink(self.patch[1])
        write(os.path.join(self.top, 'series'), os.path.basename(self.patch[0]) + '\n')
        self.fails('harness/tree', says='work that was not exported')
        self.assertEqual(read(os.path.join(self.top, 'build/linux/virt/kvm/new.c')), 'int work;\n')


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
