#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of the lines that the series adds, and how they read.

  lines.py churn TREE BASE [EXCEPTIONS]
	How many of the lines that each patch adds are deleted by a later one.  With
	EXCEPTIONS, complain of patches of which more than a third is, but for those.
  lines.py wording TREE BASE PATCHES [ALLOWED]
	"RULE COUNT PATCH" of what changelogs, covers and added comments have that they
	should not.  With ALLOWED, such a list, complain of what differs from it.

A line that its patch only moves, as git's --color-moved=blocks has it, stays the line of
the patch that wrote it.
"""

import collections
import glob
import io
import os
import re
import subprocess
import sys

WORDS = re.compile(r'\b(who|whoever|those|nobody|somebody)\b', re.I)
TRAILER = re.compile(r'[A-Z][A-Za-z-]+: |\s|.*://')
COLUMNS = 80
# A string or a character, so that what looks like a comment in it is none; a comment.
C = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|(//[^\n]*|/\*.*?\*/)', re.S)
COLOR = re.compile(r'\x1b\[[\d;]*m')
MOVED = {'old': '\x1b[1;35m', 'new': '\x1b[1;36m'}
KINDS = ('kernel', 'tests', 'documents', 'other')

Line = collections.namedtuple('Line', 'text moved')
Hunk = collections.namedtuple('Hunk', 'start count new_start old new')


class File:
    def __init__(self):
        self.path = self.blob = None
        self.hunks = []


class Patch:
    def __init__(self, commit, name, message):
        self.commit, self.name, self.message = commit, name, message
        self.files = []


def git(tree, *args, **kw):
    env = dict(os.environ, GIT_CONFIG_GLOBAL='/dev/null', GIT_CONFIG_NOSYSTEM='1')
    return subprocess.run(['git', '-c', 'safe.directory=*', '-C', tree, *args], env=env, check=True,
                          stdout=subprocess.PIPE, **kw).stdout.decode(errors='replace')


def series(tree, base):
    """The patches, with all hunks."""
    log = git(tree, '-c', 'color.diff.oldMoved=bold magenta', '-c', 'color.diff.newMoved=bold cyan',
              'log', '--reverse', '-p', '-U0', '--no-renames', '--full-index', '--color=always',
              '--color-moved=blocks', '--ws-error-highlight=none', '--src-prefix=a/', '--dst-prefix=b/',
              '--diff-algorithm=myers', '--format=%x00%H%x01%f%x01%B%x01', f'{base}..HEAD')
    for entry in log.split('\0')[1:]:
        commit, name, message, diff = COLOR.sub('', entry.partition('\ndiff --git')[0]).split('\1')[:3] + [entry]
        patch = Patch(commit, name, message)
        left = 0
        for colored in diff[diff.rfind('\1') + 1:].split('\n'):
            text = COLOR.sub('', colored)
            if left:
                side = {'-': 'old', '+': 'new'}.get(text[:1])
                if side:
                    getattr(patch.files[-1].hunks[-1], side).append(
                        Line(text[1:], colored.startswith(MOVED[side])))
                    left -= 1
            elif text.startswith('diff --git'):
                patch.files.append(File())
            elif text.startswith('index '):
                patch.files[-1].blob = text.split()[1].partition('..')[2]
            elif text.startswith(('--- a/', '+++ b/')):
                patch.files[-1].path = text[6:].rstrip('\t')
            elif text.startswith('@@'):
                start, count, new_start, new = (
                    int(n or 1) for n in re.match(r'@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@', text).groups())
                left = count + new
                patch.files[-1].hunks.append(Hunk(start, count, new_start, [], []))
        yield patch


# Churn -----------------------------------------------------------------------

def kind(path):
    if path.startswith('tools/') or path.endswith('_kunit.c'):
        return 'tests'
    if path.startswith('Documentation/'):
        return 'documents'
    return 'other' if '/' not in path else 'kernel'


def churn(patches):
    """{patch index: {kind: [added, deleted later]}}.  Each line of a file is the index of
    the patch that wrote it, or None if that is the base."""
    count = collections.defaultdict(lambda: collections.defaultdict(lambda: [0, 0]))
    files = collections.defaultdict(list)
    for n, patch in enumerate(patches):
        moved = collections.defaultdict(list)

        def gone(origin, path):
            if origin is not None and origin != n:
                count[origin][kind(path)][1] += 1

        for f in patch.files:
            lines = files[f.path]
            for h in f.hunks:
                lines += [None] * (h.start + h.count - len(lines))
                for line, origin in zip(h.old, lines[h.start - 1:]):
                    if line.moved:
                        moved[line.text.strip()].append((origin, f.path))
                    else:
                        gone(origin, f.path)
        for f in patch.files:
            for h in f.hunks:
                new = []
                for line in h.new:
                    same = line.moved and moved[line.text.strip()]
                    if same:
                        new.append(same.pop(0)[0])
                    else:
                        new.append(n)
                        count[n][kind(f.path)][0] += 1
                at = h.new_start - bool(new)
                files[f.path] += [None] * (at + h.count - len(files[f.path]))
                files[f.path][at:at + h.count] = new
        for left in moved.values():
            for origin, path in left:
                gone(origin, path)
    return count


def exceptions(path):
    with open(path) as f:
        return [line.partition(' -- ')[0] for line in f if line.strip() and not line.startswith('#')]


def print_churn(patches, count):
    print(f'{"":>4}  ' + ''.join(f'{k:>14}' for k in KINDS) + '  share  patch')
    total = collections.defaultdict(lambda: [0, 0])
    for n, patch in enumerate(patches):
        cells = ''
        for k in KINDS:
            a, d = count[n][k]
            total[k] = [total[k][0] + a, total[k][1] + d]
            cells += f'{f"+{a} -{d}" if a else "":>14}'
        a, d = (sum(x) for x in zip(*count[n].values()))
        print(f'{n + 1:04}  {cells}  {100 * d / a if a else 0:4.0f}%  {patch.name}')
    print('all   ' + ''.join(f'{f"+{a} -{d}":>14}' for a, d in total.values()))
    print('      ' + ''.join(f'{f"{100 * d / a if a else 0:.0f}%":>14}' for a, d in total.values()))


def check_churn(patches, count, path):
    listed = dict.fromkeys(exceptions(path), False)
    for n, patch in enumerate(patches):
        added, deleted = (sum(x) for x in zip(*count[n].values())) if count[n] else (0, 0)
        if 3 * deleted <= added:
            continue
        hit = [r for r in listed if re.search(r, patch.name)]
        listed.update(dict.fromkeys(hit, True))
        if not hit:
            print(f'{patch.name}: later patches delete {deleted} of the {added} lines that it adds')
    for r in listed:
        if not listed[r]:
            print(f'harness/churn has "{r}", of which later patches delete no more than a third; take it out')


# Wording ---------------------------------------------------------------------

def comments(path, text):
    """[comment or None] of each line of a file."""
    lines = text.split('\n')
    if path.endswith(('.c', '.h', '.S')):
        found = [None] * len(lines)
        for m in C.finditer(text):
            if m[1]:
                at = text.count('\n', 0, m.start())
                for i, part in enumerate(m[1].split('\n')):
                    found[at + i] = (found[at + i] or '') + part
        return found
    if path.startswith('Documentation/'):
        return lines
    return [l if l.lstrip().startswith('#') else None for l in lines]


def blobs(tree, ids):
    """{id: text}"""
    out = subprocess.run(['git', '-c', 'safe.directory=*', '-C', tree, 'cat-file', '--batch'],
                         input='\n'.join(ids).encode() + b'\n', stdout=subprocess.PIPE, check=True).stdout
    texts, out = {}, io.BytesIO(out)
    for header in out:
        name, _, size = header.split()
        texts[name.decode()] = out.read(int(size)).decode(errors='replace')
        out.readline()
    return texts


def wording(tree, patches, folder):
    """{(rule, patch): ["where: what"]}"""
    found = collections.defaultdict(list)
    for path in sorted(glob.glob(os.path.join(folder, '*', 'cover'))):
        name = os.path.basename(os.path.dirname(path))
        with open(path) as f:
            for line in f:
                found['words', re.sub(r'^\d+-', '', name) + '/cover'] += (
                    f'{name}/cover: {line.strip()}' for _ in WORDS.findall(line))
    texts = blobs(tree, {f.blob for p in patches for f in p.files if f.path and f.blob.strip('0')})
    parsed = {}
    for p in patches:
        for line in p.message.split('\n'):
            if not TRAILER.match(line) or line == p.message.split('\n')[0]:
                found['words', p.name] += (f'changelog: {line}' for _ in WORDS.findall(line))
        for f in p.files:
            if f.blob not in texts:
                continue
            if f.blob not in parsed:
                parsed[f.blob] = comments(f.path, texts[f.blob])
            for h in f.hunks:
                for at, line in enumerate(h.new, h.new_start):
                    comment = parsed[f.blob][at - 1]
                    if line.moved or comment is None:
                        continue
                    found['words', p.name] += (f'{f.path}:{at}: {line.text}' for _ in WORDS.findall(comment))
                    if f.path.endswith(('.c', '.h', '.S')) and len(line.text.expandtabs(8)) > COLUMNS:
                        found['columns', p.name].append(f'{f.path}:{at}: {line.text}')
    return {k: v for k, v in found.items() if v}


def check_wording(found, path):
    allowed = {}
    with open(path) as f:
        for line in f:
            if line.strip() and not line.startswith('#'):
                rule, count, name = line.split()
                allowed[rule, name] = int(count)
    for key in sorted({*found, *allowed}):
        rule, name = key
        n = len(found.get(key, ()))
        if n < allowed.get(key, 0):
            print(f'harness/wording allows {name} {allowed[key]} {rule}, there are {n}; '
                  'harness/lint --wording writes it anew')
        elif n > allowed.get(key, 0):
            print(f'{name}: {n} {rule}, harness/wording allows {allowed.get(key, 0)}:')
            print('\n'.join('  ' + text for text in found[key]))


def main():
    verb, tree, base, *rest = sys.argv[1:]
    patches = list(series(tree, base))
    if verb == 'churn':
        count = churn(patches)
        if rest:
            check_churn(patches, count, rest[0])
        else:
            print_churn(patches, count)
    else:
        found = wording(tree, patches, rest[0])
        if rest[1:]:
            check_wording(found, rest[1])
        else:
            for rule, name in sorted(found):
                print(rule, len(found[rule, name]), name)


if __name__ == '__main__':
    main()
