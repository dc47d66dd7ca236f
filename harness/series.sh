# SPDX-License-Identifier: GPL-2.0-only
# Sourced by tree, export, lint and others: the series as commits, and back as files.
# patches/NN-name/ is a posting; in a git tree the branch posting/NN-name ends it.

SERIES=${SERIES:-$TOP/series}
PATCHES=${PATCHES:-$TOP/patches}
LINUX=$BUILD/linux

# The names in the series file.  Whole-line comments only: git quiltimport
# takes no others.
series_names() { grep -vE '^[[:space:]]*(#|$)' "$SERIES" || :; }

# The postings, in order.
postings() { series_names | cut -d/ -f1 | uniq; }

# posting NAME: the posting of that name, which may be said without its number.
posting()
{
	postings | grep -xE "([0-9]{2}-)?$1" || die "there is no posting $1, only:" $(postings)
}

# stands_on POSTING: the postings that its cover names, or nothing for the base.
stands_on()
{
	local name

	for name in $(sed -nE '/^Stands-on: */{s///;s/,/ /g;p}' "$PATCHES/$1/cover"); do
		[ "$name" = base ] || (posting "$name")
	done
}

# closure POSTING: it and all that it stands on, in order.
closure()
{
	local p out='' need=" $1 "

	for p in $(postings | tac); do
		[[ $need == *" $p "* ]] || continue
		out="$p $out"
		need+="$(stands_on "$p" | tr '\n' ' ')"
	done
	echo "$out"
}

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

# apply_patches DIR NAME...: as commits on top of DIR's HEAD, no fuzz.
apply_patches()
{
	local dir=$1 name out
	local -a names
	shift

	names=("$@")
	for name in "${names[@]}"; do
		[ -f "$PATCHES/$name" ] || die "series names $name, which is not in patches/"
	done
	[ ${#names[@]} -gt 0 ] || return 0
	# shellcheck disable=SC2086
	out=$(GIT_COMMITTER_NAME=kvm-gpc GIT_COMMITTER_EMAIL=kvm-gpc@localhost \
	      pgit -C "$dir" -c index.skipHash=true am -q ${THREEWAY:-} --keep-non-patch --committer-date-is-author-date \
	      "${names[@]/#/$PATCHES/}" 2>&1 </dev/null) && return

	# Each of the files is one message, so the number of the one that failed tells.
	name=${names[$(cat "$(pgit -C "$dir" rev-parse --absolute-git-dir)/rebase-apply/next") - 1]}
	pgit -C "$dir" am --abort 2>/dev/null || :
	die "$name does not apply: $(
		sed -nE 's/^error: (patch failed: )?([^ ]+:[0-9]+|.*)$/\2/p' <<< "$out" |
		paste -sd, | cut -c1-300)"
}

# apply_series DIR: the series as commits on top of DIR's HEAD, and its branches.
apply_series()
{
	local base names

	base=$(pgit -C "$1" rev-parse HEAD)
	mapfile -t names < <(series_names)
	apply_patches "$1" "${names[@]}"
	paste -d' ' <(series_names) <(pgit -C "$1" rev-list --reverse "$base..HEAD") |
		awk '{ sub("/.*", "", $1); last[$1] = $2 }
		     END { for (p in last) print "create refs/heads/posting/" p, last[p] }' |
		pgit -C "$1" update-ref --stdin
}

# stack_clone REPOSITORY DIR POSTING PATH...: a sparse clone with what POSTING stands on
# and POSTING, whose branch is posting/NN-name and starts at refs/kvm-gpc/below.  The
# patches are taken out of the series' order: git merges what they do to other lines of a
# file, as it does with git am -3, and lists by the line.
stack_clone()
{
	local repo=$1 dir=$2 posting=$3 p names files
	shift 3

	mapfile -t names < <(for p in $(closure "$posting"); do series_names | grep "^$p/"; done)
	mapfile -t files < <(touched_files "${names[@]/#/$PATCHES/}")
	sparse_clone "$repo" "$dir" Makefile "${files[@]}" "$@"
	echo "$LINUX/.git/objects" >> "$dir/.git/objects/info/alternates"
	printf '%s merge=list\n' MAINTAINERS Makefile.kvm > "$dir/.git/info/attributes"
	pgit -C "$dir" config merge.list.driver "'$H/merge-list' %O %A %B"
	THREEWAY=-3 apply_patches "$dir" $(printf '%s\n' "${names[@]}" | grep -v "^$posting/")
	pgit -C "$dir" update-ref refs/kvm-gpc/below HEAD
	pgit -C "$dir" checkout -q -b "posting/$posting"
	THREEWAY=-3 apply_patches "$dir" $(printf '%s\n' "${names[@]}" | grep "^$posting/")
}

# posting_refs DIR [NAMESPACE]: "COMMIT NN-name", the branches that end the postings.
posting_refs() { pgit -C "$1" for-each-ref --format='%(objectname) %(refname:lstrip=3)' "refs/${2:-heads}/posting"; }

FORMAT=(-c diff.algorithm=myers -c core.quotePath=true -c diff.context=3
	-c diff.interHunkContext=0 -c diff.suppressBlankEmpty=false
	-c core.abbrev=12 -c i18n.logOutputEncoding=UTF-8
	format-patch -q --zero-commit --no-signature --full-index -M --stat=72
	--no-attach --no-thread --no-notes --no-renames
	--src-prefix=a/ --dst-prefix=b/ --indent-heuristic)

# format_series DIR BASE OUT: patches/ and series of BASE..HEAD, a folder for what
# each branch adds.
format_series()
{
	local prev=$2 tip n=1 commit posting last=01-name

	tip=$(pgit -C "$1" rev-parse HEAD)
	mkdir -p "$3/patches"
	: > "$3/series"
	while read -r commit posting; do
		grep -qxE '[0-9]{2}-[a-z0-9-]+' <<< "$posting" || die "posting/$posting: want NN-name"
		pgit -C "$1" merge-base --is-ancestor "$prev" "$commit" ||
			die "posting/$posting does not stand on the one before it"
		[ "$(pgit -C "$1" rev-parse "$prev^{}")" != "$commit" ] || die "posting/$posting has no patch"
		pgit -C "$1" merge-base --is-ancestor "$commit" "$tip" || die "posting/$posting is not in the series"
		pgit -C "$1" "${FORMAT[@]}" -N --no-cover-letter --no-base --start-number=$n \
			-o "$3/patches/$posting" "$prev..$commit"
		(cd "$3/patches" && echo "# $posting" && printf '%s\n' "$posting"/*.patch) >> "$3/series"
		n=$((n + $(pgit -C "$1" rev-list --count "$prev..$commit")))
		prev=$commit last=$posting
	done < <(posting_refs "$1")
	[ "$(pgit -C "$1" rev-parse "$prev^{}")" = "$tip" ] ||
		die "these are in no posting; move a branch, as by git branch -f posting/$last:"$'\n'"$(
			pgit -C "$1" log --format='%h ("%s")' "$prev..$tip")"
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
