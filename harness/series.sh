# SPDX-License-Identifier: GPL-2.0-only
# Sourced by tree, export and lint: the series as commits, and back as files.

SERIES=${SERIES:-$TOP/series}
PATCHES=${PATCHES:-$TOP/patches}
LINUX=$BUILD/linux

# The names in the series file.  Whole-line comments only: git quiltimport
# takes no others.
series_names() { grep -vE '^[[:space:]]*(#|$)' "$SERIES" || :; }

series_hash()
{
	{ echo "$1"; cat "$SERIES"; series_names | (cd "$PATCHES" && xargs -r cat); } |
		sha256sum | cut -d' ' -f1
}

# The files that patches touch, from their +++ and --- lines.
touched_files()
{
	[ $# -eq 0 ] || sed -nE 's,^(\+\+\+ b|--- a)/([^\t]*).*,\2,p; s,^rename (from|to) ,,p' "$@" | sort -u
}

# sparse_clone REPOSITORY DIR PATTERN...: a checkout of just these files.
sparse_clone()
{
	local repo=$1 dir=$2
	shift 2

	pgit clone -q --shared --no-checkout "$repo" "$dir"
	# .gitattributes: which function a hunk's header names depends on it.
	pgit -C "$dir" sparse-checkout set --no-cone /.gitattributes "${@/#//}"
	pgit -C "$dir" checkout -q -B series
}

# part_clone REPOSITORY DIR PATH...: a repository of its own whose only commit has just
# these files, folders or none of them.  git am looks at each file of a tree for each
# patch, so it takes a tenth of the time in a small one.
part_clone()
{
	local repo=$1 dir=$2
	shift 2

	pgit init -q "$dir"
	(cd "$repo" && pwd -P) | sed 's,$,/objects,' > "$dir/.git/objects/info/alternates"
	# .gitattributes: which function a hunk's header names depends on it.
	pgit --git-dir="$repo" ls-tree -rz HEAD -- .gitattributes "$@" |
		pgit -C "$dir" update-index -z --index-info
	pgit -C "$dir" commit -q --allow-empty -m base
	pgit -C "$dir" checkout -q -f -B series
}

# apply_series DIR: the series as commits on top of DIR's HEAD, no fuzz.
apply_series()
{
	local dir=$1 name out
	local -a names

	mapfile -t names < <(series_names)
	for name in "${names[@]}"; do
		[ -f "$PATCHES/$name" ] || die "series names $name, which is not in patches/"
	done
	[ ${#names[@]} -gt 0 ] || return 0
	out=$(GIT_COMMITTER_NAME=kvm-gpc GIT_COMMITTER_EMAIL=kvm-gpc@localhost \
	      pgit -C "$dir" -c index.skipHash=true am -q --keep-non-patch --committer-date-is-author-date \
	      "${names[@]/#/$PATCHES/}" 2>&1 </dev/null) && return

	# Each of the files is one message, so the number of the one that failed tells.
	name=${names[$(cat "$(pgit -C "$dir" rev-parse --absolute-git-dir)/rebase-apply/next") - 1]}
	pgit -C "$dir" am --abort 2>/dev/null || :
	die "$name does not apply: $(
		sed -nE 's/^error: (patch failed: )?([^ ]+:[0-9]+|.*)$/\2/p' <<< "$out" |
		paste -sd, | cut -c1-300)"
}

# format_series DIR BASE OUT: patches/ and series of BASE..HEAD.
format_series()
{
	mkdir -p "$3/patches"
	pgit -C "$1" -c diff.algorithm=myers -c core.quotePath=true -c diff.context=3 \
		-c diff.interHunkContext=0 -c diff.suppressBlankEmpty=false \
		-c core.abbrev=12 -c i18n.logOutputEncoding=UTF-8 \
		format-patch -q --zero-commit --no-signature --full-index -M -N --stat=72 \
		--no-attach --no-thread --no-cover-letter --no-base --no-notes --no-renames \
		--src-prefix=a/ --dst-prefix=b/ --indent-heuristic \
		-o "$3/patches" "$2..HEAD"
	(cd "$3/patches" && find . -name '*.patch' -printf '%P\n' | sort) > "$3/series"
}

# series_files DIR BASE: what the kernel's folders hold, "MODE BLOB PATH": every
# file that the series adds, or rewrites so that less than a third of it is
# upstream's (git's dissimilarity index is 67 % or more).
series_files()
{
	pgit -C "$1" diff --raw --abbrev=40 --no-renames -B1%/67% "$2" HEAD |
		awk '{ split($0, f, "\t"); st = $5;
		       if (st == "A" || st ~ /^M[0-9]/) print $2, $4, f[2] }'
}

# export_folders DIR BASE OUT
export_folders()
{
	local mode blob path

	while read -r mode blob path; do
		[[ " $FOLDERS " == *" ${path%%/*} "* ]] ||
			die "the series adds $path, which is in none of: $FOLDERS"
		mkdir -p "$3/$(dirname "$path")"
		pgit -C "$1" cat-file blob "$blob" > "$3/$path"
		[ "$mode" != 100755 ] || chmod +x "$3/$path"
	done < <(series_files "$1" "$2")
}

# same_folders A B: whatever differs between A's and B's kernel folders.
folder_diff()
{
	local d

	for d in $FOLDERS; do
		mkdir -p "$SCRATCH_EMPTY"
		diff -rq "$([ -d "$1/$d" ] && echo "$1/$d" || echo "$SCRATCH_EMPTY")" \
			 "$([ -d "$2/$d" ] && echo "$2/$d" || echo "$SCRATCH_EMPTY")" || :
		diff <(cd "$1" && [ ! -d $d ] || find $d -type f -perm /111 | sort) \
		     <(cd "$2" && [ ! -d $d ] || find $d -type f -perm /111 | sort) |
			sed -n 's/^[<>] /execute permission differs: /p'
	done
}
