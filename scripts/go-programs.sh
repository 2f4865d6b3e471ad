# Sourced by the scripts that build Kubernetes and its tests, after `module` is set: static programs of that Go module, each
# once, named by a digest of all that they are made from.
#
# Go's caches are of no use until a version changes, and take gigabytes: they are thrown away, the programs stay.

store=$cache/kubernetes
mkdir -p "$store"
go=$(find_go "$module")
tags=grpcnotrace

# Two builds at once would need twice the memory. Whoever has the lock clears away what a killed build left.
exec 9>"$store/lock"
flock 9
work=$store/work
rm -rf -- "$work"
trap 'rm -rf -- "$work"' EXIT
export GOPATH=$work/go GOMODCACHE=$work/mod GOCACHE=$work/build

locked() {  # MODULE: its version in go.mod
  awk -v p="$1" '{ sub(/^require /, "") } $1 == p && $2 ~ /^v/ { print $2; exit }' "$module/go.mod"
}

# Without its version every part of Kubernetes calls itself v0.0.0-master.
kubernetes_version() {
  local kubernetes minor variable=k8s.io/component-base/version
  kubernetes=$(locked k8s.io/kubernetes)
  minor=${kubernetes#v1.}
  echo "-X $variable.gitVersion=$kubernetes -X $variable.gitMajor=1 -X $variable.gitMinor=${minor%%.*}" \
    "-X $variable.gitTreeState=clean"
}

program() {  # NAME PACKAGE LINKER-FLAGS [SOURCE-FOLDER]: builds what is missing, prints a line "NAME PATH"
  made_by build "$@"
}

test_program() {  # the same of a package's tests
  made_by test "$@"
}

made_by() {
  local verb=$1 name=$2 package=$3 flags="-s -w $4" digest path started=$SECONDS
  local -a only=()
  [ "$verb" != test ] || only=(-c -vet=off)
  digest=$({
    cat "$module/go.mod" "$module/go.sum" ${5:+"$5"/*.go}
    "$go" env GOVERSION
    echo "$package $flags $tags"
  } | sha256sum | cut -c -16)
  path=$store/$name-$digest-$(uname -m)
  if [ ! -x "$path" ]; then
    echo "building $name" >&2
    "$go" "$verb" -C "$module" "${only[@]}" -mod=readonly -modcacherw -trimpath -tags "$tags" -ldflags "$flags" \
      -o "$path.$$" "$package"
    mv -- "$path.$$" "$path"
    echo "built $name in $((SECONDS - started)) s on $(nproc) cores; Go's caches: $(du -sm "$work" | cut -f 1) MB" >&2
  fi
  echo "$name $path"
}
