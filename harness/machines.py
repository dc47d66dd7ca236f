# SPDX-License-Identifier: GPL-2.0-only
"""The machines: how each boots a kernel and an initramfs.

Every machine has two serial lines, the kernel's log and KTAP, each a FIFO that
the runner reads; nothing is polled.  A machine is a process group of its own
that the kernel kills with the runner.
"""

import ctypes
import mmap
import os
import pty
import selectors
import shutil
import signal
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Two nodes, so that move_pages() can move something.
APPEND = 'console=ttyS0 panic=-1 numa=fake=2 kvm.force_emulation_prefix=1 kvm.enable_pmu=1'
# TCG's TSC is constant, but does not say so.  Real hosts' do, and KVM uses its master
# clock only then.
CONSTANT_TSC = 'setcpuid=constant_tsc,nonstop_tsc,tsc_reliable'
BARE_MIB = 16
# Both together no more than 2048, and this one in whole sections of the kernel's, 128.
BOCHS_MIB = 1920


def append(plan, end):
    """The command line.  The kernel leaves alone what is above END, in MiB: memory
    without struct pages, which tests of the cache map, and the last MiB before it,
    which has struct pages for being in a section with RAM, but is no RAM."""
    return f'{APPEND} mem={end - 1}M kvm.gpc_test_memory={end << 20:#x} {plan.append}'


class Process:
    """A started machine."""

    def __init__(self, plan, argv, fifos, tty=False):
        self.dir = plan.dir
        self.fds = {}
        for name, path in fifos.items():
            # Read and write, so that it has no end of file before its writer.
            self.fds[os.open(path, os.O_RDWR | os.O_NONBLOCK)] = name
        self.logs = {n: open(os.path.join(self.dir, n + '.log'), 'wb', buffering=0) for n in fifos}
        self.tty = None
        out = open(os.path.join(self.dir, 'machine.log'), 'wb')
        stdio = {'stdin': subprocess.DEVNULL, 'stdout': out, 'stderr': out}
        if tty:
            self.tty, slave = pty.openpty()
            stdio = {'stdin': slave, 'stdout': slave, 'stderr': slave}
        libc = ctypes.CDLL(None)

        def child():
            libc.prctl(1, signal.SIGKILL)       # PR_SET_PDEATHSIG

        env = dict(os.environ, TERM='vt100')
        self.process = subprocess.Popen(argv, cwd=self.dir, start_new_session=True,
                                        preexec_fn=child, env=env, **stdio)
        if tty:
            os.close(slave)
        out.close()
        self.pidfd = os.pidfd_open(self.process.pid)
        self.fifos = fifos

    def pump(self, line, done, limit, deadline):
        """Pass on KTAP lines until the machine ends ('exit'), LIMIT seconds have passed
        or deadline(), which moves from test to test, has ('limit')."""
        sel = selectors.DefaultSelector()
        for fd in self.fds:
            sel.register(fd, selectors.EVENT_READ)
        sel.register(self.pidfd, selectors.EVENT_READ)
        if self.tty is not None:
            sel.register(self.tty, selectors.EVENT_READ)
        end = time.monotonic() + limit
        rest = b''
        ended = None
        while ended is None:
            timeout = min(end, deadline()) - time.monotonic()
            events = sel.select(timeout) if timeout > 0 else []
            if not events:
                ended = 'limit'
            fds = [key.fd for key, _ in events]
            if self.pidfd in fds:
                ended = 'exit'
                fds = list(self.fds)            # what it wrote last
            for fd in fds:
                if fd == self.pidfd:
                    continue
                try:
                    data = os.read(fd, 65536)
                except (BlockingIOError, OSError):
                    if fd == self.tty:
                        sel.unregister(fd)
                    continue
                if fd == self.tty:
                    continue
                name = self.fds[fd]
                self.logs[name].write(data)
                if name != 'ktap':
                    continue
                *lines, rest = (rest + data).split(b'\n')
                for l in lines:
                    line(l.rstrip(b'\r').decode(errors='replace'))
                if done() and ended is None:
                    # All is said; the machine has a moment to power off.
                    end = min(end, time.monotonic() + 20)
        return ended

    def status(self):
        code = self.process.poll()
        return 'running' if code is None else f'signal {-code}' if code < 0 else f'exit {code}'

    def signal(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def kill(self):
        self.signal()
        self.process.wait()
        os.close(self.pidfd)
        for fd in self.fds:
            os.close(fd)
        if self.tty is not None:
            os.close(self.tty)
        for log in self.logs.values():
            log.close()


def fifos(plan):
    paths = {n: os.path.join(plan.dir, 'tmp.' + n) for n in ('console', 'ktap')}
    for p in paths.values():
        os.mkfifo(p)
    return paths


def have(program, package):
    path = shutil.which(program)
    if not path:
        raise SystemExit(f'error: there is no {program}; make deps installs it ({package})')
    return path


def hugepages(plan):
    """dirty_log_page_splitting_test wants 2 GiB of them."""
    return 'hugepages=1100' if 'kvm:dirty_log_page_splitting_test' in plan.tests else ''


class Qemu:
    """QEMU with the host's KVM."""

    def __init__(self, name):
        self.name, self.about = name, "QEMU with the host's KVM, nested"

    accel = ['-accel', 'kvm', '-cpu', 'host', '-smp', '2']

    def program(self):
        return have('qemu-system-x86_64', 'qemu-system-x86')

    def slowness(self, kernel):
        return 1 if kernel == 'default' else 5

    def cpus(self, plan):
        return self.accel

    def parameters(self):
        return ''

    def start(self, plan, initrd):
        paths = fifos(plan)
        # 3 GiB of it are below 4 GiB.
        argv = [self.program(), '-L', '/usr/share/qemu', '-L', '/usr/share/seabios', *self.cpus(plan),
                '-m', f'{6144 + BARE_MIB}M', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
                '-kernel', os.path.join(plan.build, 'bzImage'), '-initrd', initrd,
                '-append', f'{append(plan, 7168)} {hugepages(plan)} {self.parameters()}',
                '-serial', 'file:' + paths['console'], '-serial', 'file:' + paths['ktap']]
        return Process(plan, argv, paths)


def tsc_khz():
    """The rate of the host's TSC.  KVM takes 250 ppm off for another rate, which it then
    makes up for at each entry of a guest."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b'\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3')      # rdtsc; shl; or; ret
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def sample():
        """A time, and the TSC at that time: of many, what was read in the least time."""
        best = None
        for _ in range(100):
            before, ns, after = rdtsc(), time.monotonic_ns(), rdtsc()
            if best is None or after - before < best[0]:
                best = after - before, ns, (before + after) // 2
        return best[1:]

    t0, c0 = sample()
    time.sleep(0.3)
    t1, c1 = sample()
    return (c1 - c0) * 1000000 // (t1 - t0)


class Tcg(Qemu):
    """QEMU's TCG, which emulates SVM; with thread=single, instructions are the
    clock (-icount), and what a test sees does not depend on how busy the host is.  With
    VLS, L1's VMLOAD and VMSAVE do not exit.
    """

    def __init__(self, name, smp, shift, thread='single', constant_tsc=True, vls=False):
        self.name, self.smp, self.shift, self.thread = name, smp, shift, thread
        self.constant_tsc = constant_tsc
        self.cpu = 'max,-la57' if vls else 'max,-la57,-v-vmsave-vmload'
        self.about = 'QEMU, TCG with emulated SVM'

    def program(self):
        return subprocess.run([os.path.join(HERE, 'qemu')], check=True, text=True,
                              stdout=subprocess.PIPE).stdout.strip()

    def cpus(self, plan):
        # Fewer ticks for as many instructions: the Xen guest boots faster.
        shift = 0 if any(t.startswith('xen:') for t in plan.tests) else self.shift
        argv = ['-accel', f'tcg,thread={self.thread}', '-cpu', self.cpu, '-smp', str(self.smp)]
        if self.thread == 'single':
            argv += ['-icount', f'shift={shift},sleep=off']
        return argv

    def parameters(self):
        # With two threads, TCG's TSC is the host's, and what the kernel measures by the
        # PIT is wrong by any factor if the host is busy; so it may find no timer at all.
        if self.thread != 'single':
            return f'tsc_early_khz={tsc_khz()} no_timer_check'
        # For the base's figures of nested guests in memory without struct pages.
        unsafe = 'kvm.allow_unsafe_mappings=1' if self.name.startswith('icount') else ''
        return CONSTANT_TSC if self.constant_tsc else unsafe


BOCHSRC = '''\
megs: {megs}
cpu: model=corei7_haswell_4770, count={count}, ips=100000000, reset_on_triple_fault=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: term
boot: cdrom
ata0-master: type=cdrom, path={iso}, status=inserted
clock: sync=none
com1: enabled=1, mode=file, dev={console}
com2: enabled=1, mode=file, dev={ktap}
sound: waveoutdrv=dummy
speaker: enabled=0
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
'''

ISOLINUX = '''\
DEFAULT linux
PROMPT 0
LABEL linux
KERNEL /bzImage
INITRD /initrd
APPEND {append}
'''


class Bochs:
    """Bochs emulates VMX with EPT; it boots a CD."""

    about = 'Bochs with emulated VMX'

    def __init__(self, smp=1):
        self.smp = smp
        self.name = 'intel-bochs' if smp == 1 else 'intel-bochs-smp'

    def slowness(self, kernel):
        return 5 if kernel == 'default' else 20

    def start(self, plan, initrd):
        bochs = have('bochs', 'bochs bochs-term bochsbios vgabios')
        xorriso = have('xorriso', 'xorriso')
        root = os.path.join(plan.dir, 'tmp-iso')
        os.makedirs(root)
        for src, dst in (('/usr/lib/ISOLINUX/isolinux.bin', 'isolinux.bin'),
                         ('/usr/lib/syslinux/modules/bios/ldlinux.c32', 'ldlinux.c32'),
                         (os.path.join(plan.build, 'bzImage'), 'bzImage')):
            shutil.copy(src, os.path.join(root, dst))
        os.rename(initrd, os.path.join(root, 'initrd'))
        with open(os.path.join(root, 'isolinux.cfg'), 'w') as f:
            # Bochs' xsave and string instructions are not to be relied upon.
            f.write(ISOLINUX.format(append=append(plan, BOCHS_MIB) + ' nokaslr noxsave clearcpuid=erms,fsrm mitigations=off'))
        iso = os.path.join(plan.dir, 'tmp.iso')
        subprocess.run([xorriso, '-as', 'mkisofs', '-quiet', '-o', iso, '-b', 'isolinux.bin',
                        '-c', 'boot.cat', '-no-emul-boot', '-boot-load-size', '4',
                        '-boot-info-table', root], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(root)
        paths = fifos(plan)
        rc, cmd = os.path.join(plan.dir, 'tmp.bochsrc'), os.path.join(plan.dir, 'tmp.rc')
        with open(rc, 'w') as f:
            f.write(BOCHSRC.format(count=f'{self.smp}:1:1' if self.smp > 1 else 1,
                                   megs=BOCHS_MIB + BARE_MIB, iso=iso, log=os.path.join(plan.dir, 'bochs.log'), **paths))
        with open(cmd, 'w') as f:
            f.write('c\n')      # Debian's build has the debugger
        return Process(plan, [bochs, '-q', '-f', rc, '-rc', cmd], paths, tty=True)


def nesting(vendor):
    """Whether the host's KVM can run a guest of VENDOR that runs guests itself."""
    module, flag = {'amd': ('kvm_amd', 'svm'), 'intel': ('kvm_intel', 'vmx')}[vendor]
    try:
        with open(f'/sys/module/{module}/parameters/nested') as f:
            on = f.read().strip() in ('Y', '1')
        with open('/proc/cpuinfo') as f:
            has = any(flag in l.split() for l in f if l.startswith('flags'))
    except OSError:
        return False
    return on and has and os.access('/dev/kvm', os.R_OK | os.W_OK)


def choose(kind):
    if kind in ('amd', 'intel') and nesting(kind):
        return Qemu(kind + '-kvm')
    if kind == 'amd':
        return Tcg('amd-tcg', 2, 2)
    if kind == 'amd-no-master-clock':
        return Tcg('amd-tcg-no-master-clock', 2, 2, constant_tsc=False)
    if kind == 'amd-vls':
        return Tcg('amd-tcg-vls', 2, 2, vls=True)
    # Two host threads: races and store buffers are real, but time is the host's, and what
    # a test sees depends on how busy that is.
    if kind == 'amd-mt':
        return Tcg('amd-mt', 2, 0, 'multi')
    if kind == 'intel':
        return Bochs()
    # Emulated in turn; what one of them does while the other is in guest mode.
    if kind == 'intel-smp':
        return Bochs(2)
    if kind == 'icount':
        # As the figures of gpc.rst were taken, and the base's: to read KVM's clock costs
        # more without a master clock, and it is none of the cache's.
        return Tcg('icount', 1, 0, constant_tsc=False)
    if kind == 'icount-vls':
        return Tcg('icount-vls', 1, 0, constant_tsc=False, vls=True)
    raise SystemExit(f'error: no such machine: {kind} (amd, amd-mt, amd-no-master-clock, amd-vls, '
                     'intel, intel-smp, icount, icount-vls)')
